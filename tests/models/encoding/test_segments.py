"""The tokens that follow a prompt in training are those that follow it in generation, for any answer and template."""

from __future__ import annotations

import unicodedata

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import normalizers, pre_tokenizers
from transformers import AddedToken, AutoProcessor, AutoTokenizer

from mllm.errors import DataError
from mllm.models.encoding.box_formats import LocationTokens, PerceptionToken
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.marks import MarkWriter
from mllm.models.encoding.packing import RowLayout
from mllm.models.encoding.segments import SegmentTokenizer
from mllm.models.encoding.sharing import SharedRow
from mllm.models.encoding.text_processor import TextProcessor
from mllm.models.shikra.conversation import PREFACE, vicuna_template
from mllm.structures import BOX, IGNORE, Mark, Sample, Turn
from mllm.tiny.checkpoints import write_tiny

BARE = (
    "{% for turn in messages %}{{ turn['role'] ~ ':' ~ turn['content'] }}"
    "{{ eos_token if turn['role'] == 'assistant' }}{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
)
WITH_SPACE = BARE.replace("~ ':' ~", "~ ': ' ~").replace("'assistant:' if", "'assistant: ' if")
LINES = (
    "{% for turn in messages %}{{ '<|' ~ turn['role'] ~ '|>\n' ~ turn['content'] }}"
    "{{ eos_token if turn['role'] == 'assistant' }}\n{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt }}"
)
LLAMA2 = (
    "{% for turn in messages %}{{ ('[INST] ' ~ turn['content'] ~ ' [/INST]') if turn['role'] == 'user' else "
    "(' ' ~ turn['content'] ~ ' ' ~ eos_token) }}{% endfor %}"
)
NO_PROMPT = "{% for turn in messages %}{{ '### ' ~ turn['role'] ~ ':\n' ~ turn['content'] ~ '\n' }}{% endfor %}"
THINKING = (
    "{% for turn in messages %}{{ turn['role'] ~ '\n' }}"
    "{{ '<think>\n\n</think>\n\n' if loop.last and turn['role'] == 'assistant' }}"
    "{{ turn['content'] ~ (eos_token if turn['role'] == 'assistant' else '\n') }}{% endfor %}"
    "{{ 'assistant\n' if add_generation_prompt }}"
)
TEMPLATES = {
    # Template, text between the generation prompt and an answer, end of an answer before the token that ends it.
    "vicuna": (vicuna_template(), " ", ""),
    "bare": (BARE, "", ""),
    "with a space": (WITH_SPACE, "", ""),
    "lines": (LINES, "", ""),
    "llama2": (LLAMA2, " ", " "),
    "without a generation prompt": (NO_PROMPT, "### assistant:\n", ""),
    "thinking": (THINKING, "<think>\n\n</think>\n\n", ""),
}
TOKENIZERS = ("llama", "legacy llama", "gemma", "qwen")
ANSWERS = ["1", "4", "(a)", "<x>", "-5", "é", "心臟", "😀", "[0.1,0.2]", ": x", ":-)", "::", "...", "'s", "A\n\nB"]
CHARACTERS = st.characters(codec="utf-8", exclude_categories=["Cs", "Co"])
WORDS = st.text(CHARACTERS, min_size=1, max_size=12).filter(str.strip)
TEXTS = st.one_of(st.sampled_from(ANSWERS), WORDS)


@pytest.fixture(scope="module")
def tokenizers(tiny_medgemma, tiny_llava, tiny_qwen2_vl, tmp_path_factory):
    folders = dict(llama=write_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama"))
    folders |= {"legacy llama": folders["llama"], "gemma": tiny_medgemma, "qwen": tiny_qwen2_vl}
    loaded = {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}
    # As in the files of Vicuna and Phi-3: a space is added before every text that follows a special token.
    backend = loaded["legacy llama"].backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Sequence([])
    return loaded


@pytest.fixture(scope="module")
def encoder_of(tokenizers):
    def build(name, template):
        processor = TextProcessor(tokenizers[name])
        return ChatEncoder(processor, max_length=10**6, chat_template=TEMPLATES[template][0])

    return build


def conversation(*texts):
    return Sample([Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)], source="F, line 2")


def followed(encoder, sample):
    """Check that training continues the prompt with supervised tokens only, and return these tokens."""
    prompt, encoded = encoder.prompt(sample), encoder.encode(sample)
    ids, labels = encoded.student["input_ids"], encoded.targets["labels"]
    assert torch.equal(ids[: len(prompt)], prompt.student["input_ids"])
    assert torch.equal(labels[len(prompt) :], ids[len(prompt) :])
    for name, tensor in encoded.student.items():
        if tensor.dim() == 1 and not name.startswith("object_"):
            assert torch.equal(tensor[: len(prompt)], prompt.student[name])
    return ids[len(prompt) :]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=12)
@given(texts=st.lists(TEXTS, min_size=2, max_size=4).filter(lambda texts: len(texts) % 2 == 0))
@example(texts=["How many?", "1"])
@example(texts=["How many?", "Two", "And now?", "(3)"])
def test_prompt_and_generated_tokens_are_the_training_tokens(encoder_of, name, template, texts):
    encoder = encoder_of(name, template)
    _, opening, before_end = TEMPLATES[template]
    if any(token in text for text in texts for token in encoder._control_tokens):
        return
    answer = followed(encoder, conversation(*texts))
    prompt = encoder.prompt(conversation(*texts)).student["input_ids"]
    assert int(answer[-1]) == encoder.turn_end_id == encoder.tokenizer.eos_token_id
    # Decoded with the prompt, since a decoder drops a space at the very beginning. No space is removed here.
    text = encoder.tokenizer.decode(torch.cat([prompt, answer]), clean_up_tokenization_spaces=False)
    before = encoder.tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
    written = unicodedata.normalize("NFC", texts[-1].strip()) if name == "qwen" else texts[-1].strip()
    assert text == before + opening + written + before_end + encoder.tokenizer.eos_token
    # Each answer of a conversation continues the prompt of its turn.
    if template != "thinking":
        training = encoder.encode(conversation(*texts)).student["input_ids"]
        for length in range(2, len(texts), 2):
            earlier = encoder.encode(conversation(*texts[:length])).student["input_ids"]
            assert torch.equal(training[: len(earlier)], earlier)
    assert encoder.read_answer(answer[:-1]).text == written


@settings(max_examples=40)
@given(texts=st.tuples(TEXTS, TEXTS))
def test_tokens_of_vicuna_equal_those_of_the_complete_text(encoder_of, texts):
    """Reference: plain tokenization of the published format."""
    for name in ("llama", "legacy llama"):
        encoder = encoder_of(name, "vicuna")
        question, answer = (text.strip() for text in texts)
        if any(token in question + answer for token in encoder._control_tokens):
            continue
        whole = encoder.tokenizer(f"{PREFACE} USER: {question} ASSISTANT: {answer}</s>")["input_ids"]
        encoded = encoder.encode(conversation(question, answer))
        assert encoded.student["input_ids"].tolist() == whole
        prompt = encoder.tokenizer(f"{PREFACE} USER: {question} ASSISTANT:")["input_ids"]
        assert encoded.targets["labels"].tolist() == [IGNORE] * len(prompt) + whole[len(prompt) :]


def grounded(text, mark=True):
    image = Image.new("RGB", (60, 50), (9, 8, 7))
    answer = Turn("assistant", text, ((0,),) if mark else ())
    return Sample([Turn("user", "<image> Where?"), answer], [image], marks=[Mark(box=(0, 0, 30, 25))])


@pytest.mark.parametrize("box_format", [None, LocationTokens(101), PerceptionToken()], ids=["text", "tokens", "object"])
@pytest.mark.parametrize("family", ["tiny_medgemma", "tiny_llava", "tiny_qwen2_vl", "shikra"])
def test_an_answer_may_begin_with_a_box(request, tiny_llava, family, box_format):
    folder = tiny_llava if family == "shikra" else request.getfixturevalue(family)
    processor = AutoProcessor.from_pretrained(folder)
    tokens = [] if box_format is None else box_format.tokens
    processor.tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    template = vicuna_template() if family == "shikra" else None
    encoder = ChatEncoder(processor, max_length=4096, chat_template=template, marks=MarkWriter(box_format))
    for text in (BOX, f"{BOX} is the lesion", f"There: {BOX}", "1"):
        sample = grounded(text, BOX in text)
        answer = followed(encoder, sample)
        assert int(answer[-1]) == encoder.turn_end_id
        marks = [Mark(box=(0, 0, 30, 25))] if isinstance(box_format, PerceptionToken) and BOX in text else None
        read = encoder.read_answer(answer[:-1], encoder.prompt(sample).frames, marks)
        assert (read.text, len(read.marks)) == (encoder.reference(sample).text, text.count(BOX))


def test_packed_answers_continue_their_own_prompts(encoder_of):
    encoder = encoder_of("llama", "vicuna")
    samples = [conversation("How many?", answer) for answer in ("1", "(b)", "Yes, two.")]
    encoded = [encoder.encode(sample) for sample in samples]
    batch = encoder.pad(encoded)
    row = SharedRow.of(batch.student["attention_mask"], RowLayout.of(encoded, range(3), [0] * 3))
    labels = row.pack(batch.targets["labels"])
    assert int((row.position_ids == 0).sum()) == 3
    expected = [tensor for one in samples for tensor in (encoder.prompt(one).targets["labels"], followed(encoder, one))]
    assert torch.equal(labels[0], torch.cat(expected))


def test_an_empty_answer_is_refused_and_an_image_in_an_answer_too(encoder_of):
    encoder = encoder_of("llama", "vicuna")
    for texts in (["Why?", " \n"], ["Why?", "", "And?", "Yes"]):
        with pytest.raises(DataError, match="F, line 2: an answer is empty"):
            encoder.encode(conversation(*texts))
    with pytest.raises(DataError, match="F, line 2: an answer contains <image>"):
        encoder.encode(conversation("Why?", "<image>", "And?", "Yes"))
    # In a chat an answer may be empty.
    assert len(encoder.prompt(conversation("Why?", "", "And?"))) > 0


def test_a_question_after_the_last_answer_is_left_out(encoder_of):
    encoder = encoder_of("gemma", "lines")
    whole, cut = conversation("a", "b", "c"), conversation("a", "b")
    assert torch.equal(encoder.encode(whole).student["input_ids"], encoder.encode(cut).student["input_ids"])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_segments_are_joined_without_separators(tokenizers, name):
    tokenizer = tokenizers[name]
    divide = SegmentTokenizer(TextProcessor(tokenizer))
    tensors, ends = divide(["one:", ":two", "", f"x{tokenizer.eos_token}", "three"])
    assert len(ends) == 5 and ends[-1] == len(tensors["input_ids"]) and ends[1] == ends[2]
    assert tensors["attention_mask"].tolist() == [1] * ends[-1]
    text = tokenizer.decode(tensors["input_ids"], clean_up_tokenization_spaces=False)
    bos = tokenizer.bos_token or "" if name != "qwen" else ""
    assert text.removeprefix(bos).replace(f"{tokenizer.eos_token} ", tokenizer.eos_token).lstrip() == (
        f"one::twox{tokenizer.eos_token}three"
    )
