"""Sources and targets of encoder-decoder models, against the documented format of T5Gemma."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, BartConfig, BartForConditionalGeneration

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import DataError
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.seq2seq import Seq2SeqEncoder
from mllm.models.encoding.text_processor import TextProcessor
from mllm.models.generation.generate import generate, stop_ids
from mllm.structures import IGNORE, Sample, Turn


def pair(question: str, answer: str) -> Sample:
    return Sample([Turn("user", question), Turn("assistant", answer)], source="rows.tsv, line 3")


@pytest.fixture
def tokenizer(tiny_medgemma):
    return AutoTokenizer.from_pretrained(tiny_medgemma)


def encoder(tokenizer, max_length=64, **options) -> Seq2SeqEncoder:
    return Seq2SeqEncoder(
        TextProcessor(tokenizer), max_length=max_length, decoder_start_id=tokenizer.bos_token_id, **options
    )


def test_the_source_has_no_bos_and_the_target_ends_its_turn(tokenizer):
    encoded = encoder(tokenizer).encode(pair("The heart is normal.", "Das Herz ist normal."))
    source = tokenizer.decode(encoded.student["input_ids"])
    assert source == "<start_of_turn>user\nThe heart is normal.<end_of_turn>\n<start_of_turn>model\n"
    decoder, labels = encoded.student["decoder_input_ids"], encoded.targets["labels"]
    assert tokenizer.decode(decoder) == "<bos>Das Herz ist normal.<end_of_turn>"
    assert labels[0] == IGNORE and torch.equal(labels[1:], decoder[1:])
    assert not encoded.truncated


def test_without_a_template_the_tokenizer_ends_both(tokenizer):
    tokenizer.chat_template = None
    encoded = encoder(tokenizer).encode(pair("The heart.", "Das Herz."))
    assert tokenizer.decode(encoded.targets["labels"][1:]) == "Das Herz.<eos>"
    assert torch.equal(encoded.student["input_ids"], torch.tensor(tokenizer("The heart.")["input_ids"]))


def test_a_long_question_is_cut_at_its_end_and_keeps_the_turns(tokenizer):
    one = encoder(tokenizer, max_length=24).encode(pair("The liver is large. " * 20, "Ja."))
    source = tokenizer.decode(one.student["input_ids"])
    assert len(one.student["input_ids"]) <= 24 and one.truncated
    assert source.startswith("<start_of_turn>user\nThe liver is large.")
    assert source.endswith("<end_of_turn>\n<start_of_turn>model\n")
    with pytest.raises(DataError, match="rows.tsv, line 3: .* do not fit max_length=4"):
        encoder(tokenizer, max_length=4).encode(pair("The liver is large.", "Ja."))


def test_a_long_answer_is_truncated_and_marked(tokenizer):
    encoded = encoder(tokenizer, max_length=30).encode(pair("Why?", "The liver is large. " * 20))
    assert len(encoded.targets["labels"]) == 31 and encoded.truncated


def test_sources_and_targets_are_padded_separately(tokenizer):
    built = encoder(tokenizer)
    samples = [
        built.encode(pair("Why?", "The liver is large and smooth.")),
        built.encode(pair("Where is it? " * 4, "A.")),
    ]
    batch = built.pad(samples)
    assert batch.student["input_ids"].shape == batch.student["attention_mask"].shape
    assert batch.student["decoder_input_ids"].shape == batch.targets["labels"].shape
    for row, sample in enumerate(samples):
        length = len(sample.targets["labels"])
        assert torch.equal(batch.targets["labels"][row, :length], sample.targets["labels"])
        assert (batch.targets["labels"][row, length:] == IGNORE).all()
        assert int(batch.student["attention_mask"][row].sum()) == len(sample.student["input_ids"])


def test_history_is_part_of_the_source_and_control_tokens_are_refused(tokenizer):
    built = encoder(tokenizer)
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    source = tokenizer.decode(built.encode(Sample(turns)).student["input_ids"])
    assert source.startswith("<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n")
    assert tokenizer.decode(built.prompt(Sample(turns)).student["input_ids"]) == source
    with pytest.raises(DataError, match="control token '<end_of_turn>'"):
        built.encode(pair("a <end_of_turn> b", "c"))
    with pytest.raises(DataError, match="does not end with an answer"):
        built.encode(Sample([Turn("user", "a")]))


@pytest.mark.parametrize("template", [True, False])
def test_a_source_with_images_is_that_of_the_processor_and_a_long_question_keeps_them(tiny_medgemma, template):
    processor = AutoProcessor.from_pretrained(tiny_medgemma)
    processor.chat_template = processor.chat_template if template else None
    processor.tokenizer.chat_template = None
    made = Seq2SeqEncoder(processor, max_length=560, decoder_start_id=processor.tokenizer.bos_token_id)
    pictures = [Image.new("RGB", size, (9, 200, 90)) for size in ((40, 30), (20, 50))]
    turns = [Turn("user", "<image>Compare <image> with it."), Turn("assistant", "No.")]
    encoded = made.encode(Sample(turns, pictures))
    source = "<start_of_image>Compare <start_of_image> with it."
    if template:
        source = (
            "<start_of_turn>user\n<start_of_image>Compare<start_of_image>with it.<end_of_turn>\n<start_of_turn>model\n"
        )
    expected = processor(text=source, images=pictures, return_tensors="pt", add_special_tokens=not template)
    for name, tensor in made.pad([encoded]).student.items():
        if name != "decoder_input_ids":
            torch.testing.assert_close(tensor, expected[name], msg=name)
    assert {"pixel_values", "token_type_ids"} < set(encoded.student) and not encoded.truncated
    long = made.encode(Sample([replace(turns[0], text=turns[0].text + " word" * 99), turns[1]], pictures))
    assert len(long.student["input_ids"]) <= 560 and long.truncated and len(long.student["pixel_values"]) == 2
    assert made.tokenizer.decode(long.student["input_ids"]).count("<image_soft_token>") == 512
    texts = made.pad([encoded, made.encode(pair("Why?", "A."))])
    assert texts.images == (0, 0) and len(texts.student["pixel_values"]) == 2
    with pytest.raises(DataError, match="rows.tsv, line 3: the text has 1 <image> placeholders for 0 images"):
        made.encode(pair("<image>Why?", "a"))


def test_answers_are_read_and_references_match(tokenizer):
    built = encoder(tokenizer)
    ids = torch.tensor(tokenizer("Das Herz.", add_special_tokens=False)["input_ids"] + [built.turn_end_id])
    assert built.read_answer(ids).text == "Das Herz."
    assert built.reference(pair("a", "Das Herz.")).text == "Das Herz."


def test_sources_are_padded_on_the_right_for_generation_too(tokenizer):
    built = encoder(tokenizer)
    prompts = [built.prompt(pair("Why?", "a")), built.prompt(pair("Where is the lesion in the left lung?", "a"))]
    left, right = built.pad(prompts, side="left").student, built.pad(prompts).student
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert left["attention_mask"][0].tolist() == sorted(left["attention_mask"][0].tolist(), reverse=True)


def test_an_empty_answer_and_half_a_character_are_refused(tokenizer):
    with pytest.raises(DataError, match="rows.tsv, line 3: an answer is empty"):
        encoder(tokenizer).encode(pair("Why?", " "))
    with pytest.raises(DataError, match=r"rows.tsv, line 3: .* lone surrogate U\+D83D"):
        encoder(tokenizer).prompt(pair("Why \ud83d?", "a"))


@pytest.fixture(scope="module", params=["generation_config.json", "config.json alone"])
def bart(request, tiny_medgemma, tmp_path_factory):
    """A tiny BART, whose encoder counts positions from the left, and whose decoder has a special start token."""
    folder = tmp_path_factory.mktemp("bart") / "bart"
    tokenizer = AutoTokenizer.from_pretrained(tiny_medgemma)
    tokenizer.chat_template = None
    sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        **sizes,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        init_std=0.5,
    )
    model = BartForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if request.param == "config.json alone":
        (folder / "generation_config.json").unlink()
        saved = json.loads((folder / "config.json").read_text())
        saved["decoder_start_token_id"] = tokenizer.eos_token_id
        (folder / "config.json").write_text(json.dumps(saved))
    args = ModelArgs(type="seq2seq", model_name_or_path=str(folder), lora_r=2, max_length=64)
    return load_pretrained(args, Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2))


@torch.no_grad()
def test_generation_starts_where_training_starts_and_does_not_depend_on_the_batch(bart):
    """Reference: a loop of full forward passes that starts with the first input of training."""
    samples = [pair(question, "a") for question in ("Why?", "Where is the lesion in the left lung of the patient?")]
    together = generate(bart, samples, max_new_tokens=6, batch_size=2, progress=False)
    model = bart.model.pretrained.eval()
    for sample, answer in zip(samples, together, strict=True):
        assert generate(bart, [sample], max_new_tokens=6, progress=False)[0] == answer
        encoded = bart.encoder.encode(sample)
        tokens = encoded.student["decoder_input_ids"][:1].tolist()
        assert tokens == [bart.encoder.tokenizer.eos_token_id]
        source = bart.encoder.pad([bart.encoder.prompt(sample)]).student
        for _ in range(6):
            token = int(model(**source, decoder_input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
            if token in stop_ids(bart):
                break
            tokens.append(token)
        expected = bart.encoder.read_answer(torch.tensor(tokens[1:], dtype=torch.long))
        assert answer == replace(expected, tokens=min(len(tokens), 6))
