"""Labels on the answers and nothing else, checked against an independent reading of the token ids."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from mllm.errors import DataError
from mllm.models.encoder import ChatEncoder
from mllm.structures import IGNORE, Encoded, Sample, Turn

FAMILIES = ("medgemma", "llava", "qwen2_vl")
MARKERS = {
    # How a family's turns begin and end, as its template documents them: written down here a second time.
    "medgemma": ("<start_of_turn>model\n", "<end_of_turn>"),
    "llava": ("ASSISTANT: ", "</s>"),
    "qwen2_vl": ("<|im_start|>assistant\n", "<|im_end|>"),
}


@pytest.fixture(scope="module")
def processors(tiny_medgemma, tiny_llava, tiny_qwen2_vl):
    folders = dict(zip(FAMILIES, (tiny_medgemma, tiny_llava, tiny_qwen2_vl), strict=True))
    return {family: AutoProcessor.from_pretrained(folder) for family, folder in folders.items()}


def picture(seed=0, size=(60, 50)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def by_markers(processor, ids, family):
    """The answers as characters between the family's markers in the decoded text: no offsets, no brackets."""
    begin, end = MARKERS[family]
    text = processor.tokenizer.decode(ids, skip_special_tokens=False)
    answers = []
    while begin in text:
        _, _, text = text.partition(begin)
        answer, stop, text = text.partition(end)
        answers.append(answer + stop)
    return answers


def stretches(labels):
    """Consecutive supervised token ids."""
    found, previous = [], IGNORE
    for label in labels.tolist():
        if label != IGNORE:
            if previous == IGNORE:
                found.append([])
            found[-1].append(label)
        previous = label
    return found


def squeezed(text):
    """Without spaces: a tokenizer may put the space between marker and answer into the answer's first token."""
    return text.replace(" ", "")


CONVERSATIONS = {
    "one turn": [("user", "<image> What is this?"), ("assistant", "A chest X-ray.")],
    "no image": [("user", "What is a CT?"), ("assistant", "Computed tomography.")],
    "multi-turn": [
        ("user", "<image> Which modality?"),
        ("assistant", "CT"),
        ("user", "Any lesion? <image>"),
        ("assistant", "Yes,\ntwo lesions: 3.5 mm and 4 mm."),
        ("user", "Sure?"),
        ("assistant", "CT"),
    ],
    "the answer stands in the question": [("user", "Say CT. CT?"), ("assistant", "CT")],
    "newlines and unicode": [("user", "\n\nWas ist das?\n"), ("assistant", "  µm–Größe: 5 %\n\nmodel\n ")],
}


SYSTEM = "You are a careful radiologist."  # LLaVA's template has no place for one


@pytest.mark.parametrize(
    ("family", "system"), [*((family, None) for family in FAMILIES), ("medgemma", SYSTEM), ("qwen2_vl", SYSTEM)]
)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_labels_are_the_answers_with_their_end(processors, family, name, system):
    turns = [Turn(role, text) for role, text in CONVERSATIONS[name]]
    images = [picture(seed) for seed in range(sum(turn.text.count("<image>") for turn in turns))]
    encoder = ChatEncoder(processors[family], max_length=4096, system=system)
    encoded = encoder.encode(Sample(turns, images))
    ids, labels = encoded.student["input_ids"], encoded.targets["labels"]
    assert torch.equal(labels[labels != IGNORE], ids[labels != IGNORE])
    spoken = [encoder.tokenizer.decode(tokens) for tokens in stretches(labels)]
    end = MARKERS[family][1]
    expected = [turn.text.strip() + end for turn in turns if turn.role == "assistant"]
    assert [squeezed(text) for text in spoken] == [squeezed(text) for text in expected]
    if "model\n" not in turns[-1].text:
        assert [squeezed(text) for text in by_markers(processors[family], ids, family)] == [
            squeezed(text) for text in expected
        ]
    if system:
        assert system in encoder.tokenizer.decode(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_what_training_saw_before_the_answer(processors, family):
    encoder = ChatEncoder(processors[family], max_length=4096)
    sample = Sample([Turn("user", "<image> What?"), Turn("assistant", "CT of the head")], [picture()])
    asked, answered = encoder.prompt(sample).student, encoder.encode(sample).student
    length = len(asked["input_ids"])
    assert torch.equal(answered["input_ids"][:length], asked["input_ids"])
    assert torch.equal(answered["pixel_values"], asked["pixel_values"])
    first_label = int((encoder.encode(sample).targets["labels"] != IGNORE).nonzero()[0])
    assert first_label == length


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co"], exclude_characters="<>[]|"), min_size=1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.integers(0, 400))
def test_any_text_and_any_length(processors, exchanges, max_length):
    turns = [
        Turn(role, text.strip() or "x")
        for pair in exchanges
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    whole = ChatEncoder(processors["medgemma"], max_length=10**6).encode(Sample(turns))
    labels = whole.targets["labels"]
    assert [whole_ids[-1] for whole_ids in stretches(labels)] == [6] * len(exchanges)
    assert all(6 not in answer[:-1] for answer in stretches(labels))
    encoder = ChatEncoder(processors["medgemma"], max_length=max_length)
    try:
        cut = encoder.encode(Sample(turns))
    except DataError as error:
        assert "max_length" in str(error)
        assert (labels[1:max_length] == IGNORE).all()
    else:
        assert torch.equal(cut.targets["labels"], labels[:max_length])
        assert cut.truncated == (len(whole) > max_length)


def test_bos_stands_once(processors):
    ids = (
        ChatEncoder(processors["medgemma"], max_length=99)
        .encode(Sample([Turn("user", "a"), Turn("assistant", "b")]))
        .student["input_ids"]
    )
    assert (ids == processors["medgemma"].tokenizer.bos_token_id).sum() == 1


def test_gemma_is_told_where_its_images_are(processors):
    encoder = ChatEncoder(processors["medgemma"], max_length=4096)
    sample = Sample([Turn("user", "<image> and <image>"), Turn("assistant", "b")], [picture(0), picture(1)])
    student = encoder.encode(sample).student
    soft = student["input_ids"] == processors["medgemma"].tokenizer.image_token_id
    assert torch.equal(student["token_type_ids"].bool(), soft)
    assert soft.sum() == 2 * 256
    assert student["pixel_values"].shape == (2, 3, 896, 896)


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ([("user", "a")], 0, "F, line 2: the conversation has no answer to learn from"),
        ([("user", "<image> a"), ("assistant", "b")], 2, "F, line 2: the text has 1 <image> placeholders for 2 images"),
        (
            [("user", "<end_of_turn> a"), ("assistant", "b")],
            0,
            "F, line 2: the text holds the control token '<end_of_turn>'; remove it",
        ),
        ([("assistant", "a"), ("assistant", "b")], 0, "F, line 2: the chat template refuses it: "),
    ],
)
def test_what_cannot_be_encoded_is_said_with_its_row(processors, turns, images, message):
    sample = Sample([Turn(*turn) for turn in turns], [picture()] * images, source="F, line 2")
    with pytest.raises(DataError) as error:
        ChatEncoder(processors["medgemma"], max_length=999).encode(sample)
    assert str(error.value).startswith(message)


def test_images_without_a_placeholder_stand_before_the_question(processors):
    encoder = ChatEncoder(processors["medgemma"], max_length=4096)
    with_, without = (
        encoder.encode(Sample([Turn("user", text), Turn("assistant", "b")], [picture()]))
        for text in ("<image>What?", "What?")
    )
    assert torch.equal(with_.student["input_ids"], without.student["input_ids"])


def test_truncation_never_cuts_an_image(processors):
    encoder = ChatEncoder(processors["medgemma"], max_length=100)
    with pytest.raises(DataError, match="do not fit max_length=100, and the cut would fall into an image"):
        encoder.encode(Sample([Turn("user", "<image> a"), Turn("assistant", "b")], [picture()], source="F, line 2"))


def test_a_question_that_fills_max_length_is_an_error(processors):
    encoder = ChatEncoder(processors["medgemma"], max_length=12)
    with pytest.raises(DataError, match="F, line 2: the answer starts after max_length=12"):
        encoder.encode(Sample([Turn("user", "many words " * 20), Turn("assistant", "b")], source="F, line 2"))


def test_padding_on_both_sides(processors):
    encoder = ChatEncoder(processors["medgemma"], max_length=4096)
    long = encoder.encode(Sample([Turn("user", "<image> a"), Turn("assistant", "b")], [picture()]))
    short = encoder.encode(Sample([Turn("user", "a"), Turn("assistant", "b")]))
    for side in ("right", "left"):
        batch = encoder.pad([long, short], side=side)
        real = batch.student["attention_mask"][1].bool()
        assert torch.equal(batch.student["input_ids"][1][real], short.student["input_ids"])
        assert (batch.student["input_ids"][1][~real] == encoder.tokenizer.pad_token_id).all()
        assert (batch.targets["labels"][1][~real] == IGNORE).all()
        assert bool(real[0]) == (side == "right")
        assert batch.student["pixel_values"].shape[0] == 1


def test_an_end_of_turn_from_the_config_takes_the_place_of_the_found_one(processors):
    encoder = ChatEncoder(processors["llava"], max_length=999, turn_end="<unk>")
    encoded = encoder.encode(Sample([Turn("user", "a"), Turn("assistant", "b")]))
    assert encoded.targets["labels"][encoded.targets["labels"] != IGNORE][-1] == encoder.turn_end_id


def _encoded(**student):
    ids = torch.arange(3)
    return Encoded({"input_ids": ids, "attention_mask": torch.ones_like(ids), **student}, {"labels": ids})


def test_images_cut_into_unlike_numbers_of_tiles_share_a_batch(processors):
    """As in LLaVA-NeXT, whose processor too fills up with zeros; `image_sizes` says how many tiles are real."""
    encoder = ChatEncoder(processors["llava"], max_length=99)
    tiles = [torch.rand(1, count, 3, 4, 4) for count in (3, 5)]
    pixels = encoder.pad([_encoded(pixel_values=tensor) for tensor in tiles]).student["pixel_values"]
    assert pixels.shape == (2, 5, 3, 4, 4)
    assert torch.equal(pixels[0, :3], tiles[0][0])
    assert torch.equal(pixels[1], tiles[1][0])
    assert not pixels[0, 3:].any()


def test_what_belongs_to_the_text_must_be_there_in_every_sample(processors):
    encoder = ChatEncoder(processors["llava"], max_length=99)
    with pytest.raises(AssertionError, match="a sample without token_type_ids"):
        encoder.pad([_encoded(), _encoded(token_type_ids=torch.ones(3, dtype=torch.long))])
