"""Labels on the answers only and marks at their tokens, against an independent decoding of the ids."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AddedToken, AutoProcessor

from mllm.errors import DataError
from mllm.models.encoding.box_formats import LocationTokens, NormalizedText, PerceptionToken
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.marks import MarkWriter
from mllm.structures import IGNORE, Answer, Encoded, Frame, Mark, Sample, Turn

FAMILIES = ("medgemma", "llava", "qwen2_vl")
MARKERS = {
    # Beginning and end of the turns of each family, as in the documentation of its template.
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
    """Return the answers as text between the markers of the family in the decoded ids."""
    begin, end = MARKERS[family]
    text = processor.tokenizer.decode(ids, skip_special_tokens=False)
    answers = []
    while begin in text:
        _, _, text = text.partition(begin)
        answer, stop, text = text.partition(end)
        answers.append(answer + stop)
    return answers


def supervised_runs(labels):
    """Return runs of consecutive supervised token ids."""
    actual, previous = [], IGNORE
    for label in labels.tolist():
        if label != IGNORE:
            if previous == IGNORE:
                actual.append([])
            actual[-1].append(label)
        previous = label
    return actual


def without_spaces(text):
    """Return texts without spaces, since the space before an answer may be part of its first token."""
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


SYSTEM = "You are a careful radiologist."  # LLaVA's template has no system turn


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
    decoded_answers = [encoder.tokenizer.decode(tokens) for tokens in supervised_runs(labels)]
    end = MARKERS[family][1]
    expected = [turn.text.strip() + end for turn in turns if turn.role == "assistant"]
    assert [without_spaces(text) for text in decoded_answers] == [without_spaces(text) for text in expected]
    if "model\n" not in turns[-1].text:
        assert [without_spaces(text) for text in by_markers(processors[family], ids, family)] == [
            without_spaces(text) for text in expected
        ]
    if system:
        assert system in encoder.tokenizer.decode(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_equals_the_training_input_before_the_answer(processors, family):
    encoder = ChatEncoder(processors[family], max_length=4096)
    sample = Sample([Turn("user", "<image> What?"), Turn("assistant", "CT of the head")], [picture()])
    prompt, complete = encoder.prompt(sample).student, encoder.encode(sample).student
    length = len(prompt["input_ids"])
    assert torch.equal(complete["input_ids"][:length], prompt["input_ids"])
    assert torch.equal(complete["pixel_values"], prompt["pixel_values"])
    first_label = int((encoder.encode(sample).targets["labels"] != IGNORE).nonzero()[0])
    assert first_label == length


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co"], exclude_characters="<>[]|"), min_size=1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.integers(0, 400))
def test_labels_are_exact_for_any_text_and_length(processors, exchanges, max_length):
    turns = [
        Turn(role, text.strip() or "x")
        for pair in exchanges
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    whole = ChatEncoder(processors["medgemma"], max_length=10**6).encode(Sample(turns))
    labels = whole.targets["labels"]
    assert [whole_ids[-1] for whole_ids in supervised_runs(labels)] == [6] * len(exchanges)
    assert all(6 not in answer[:-1] for answer in supervised_runs(labels))
    encoder = ChatEncoder(processors["medgemma"], max_length=max_length)
    try:
        cut = encoder.encode(Sample(turns))
    except DataError as error:
        assert "max_length" in str(error)
        assert (labels[1:max_length] == IGNORE).all()
    else:
        assert torch.equal(cut.targets["labels"], labels[:max_length])
        assert cut.truncated == (len(whole) > max_length)


def test_bos_occurs_once(processors):
    ids = (
        ChatEncoder(processors["medgemma"], max_length=99)
        .encode(Sample([Turn("user", "a"), Turn("assistant", "b")]))
        .student["input_ids"]
    )
    assert (ids == processors["medgemma"].tokenizer.bos_token_id).sum() == 1


def test_gemma_gets_token_types_of_its_images(processors):
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
            "F, line 2: the text contains the control token '<end_of_turn>'; remove it",
        ),
        ([("user", "a \ud800"), ("assistant", "b")], 0, "F, line 2: the text contains half of a character (the lone "),
        ([("assistant", "a"), ("assistant", "b")], 0, "F, line 2: the chat template refuses it: "),
    ],
)
def test_encoding_errors_name_the_row(processors, turns, images, message):
    sample = Sample([Turn(*turn) for turn in turns], [picture()] * images, source="F, line 2")
    with pytest.raises(DataError) as error:
        ChatEncoder(processors["medgemma"], max_length=999).encode(sample)
    assert str(error.value).startswith(message)


def test_an_unexpected_error_of_the_processor_names_the_row(processors):
    image = Image.new("RGB", (1, 4000))  # Qwen2-VL refuses images with extreme proportions
    with pytest.raises(DataError, match=r"F, line 2: it cannot be used \(ValueError: .*ratio"):
        ChatEncoder(processors["qwen2_vl"], max_length=999).prompt(
            Sample([Turn("user", "<image>")], [image], source="F, line 2")
        )


def test_images_without_a_placeholder_are_placed_before_the_question(processors):
    encoder = ChatEncoder(processors["medgemma"], max_length=4096)
    with_, without = (
        encoder.encode(Sample([Turn("user", text), Turn("assistant", "b")], [picture()]))
        for text in ("<image>What?", "What?")
    )
    assert torch.equal(with_.student["input_ids"], without.student["input_ids"])


def test_truncation_never_cuts_an_image(processors):
    encoder = ChatEncoder(processors["medgemma"], max_length=100)
    with pytest.raises(DataError, match="do not fit max_length=100, and the cut would be inside an image"):
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


def test_an_end_of_turn_in_the_config_replaces_that_of_the_template(processors):
    encoder = ChatEncoder(processors["llava"], max_length=999, turn_end="<unk>")
    encoded = encoder.encode(Sample([Turn("user", "a"), Turn("assistant", "b")]))
    assert encoded.targets["labels"][encoded.targets["labels"] != IGNORE][-1] == encoder.turn_end_id


def _encoded(**student):
    ids = torch.arange(3)
    return Encoded({"input_ids": ids, "attention_mask": torch.ones_like(ids), **student}, {"labels": ids})


def test_images_with_different_numbers_of_tiles_share_a_batch(processors):
    """As in LLaVA-NeXT, whose processor also pads with zeros; `image_sizes` has the number of tiles without padding."""
    encoder = ChatEncoder(processors["llava"], max_length=99)
    tiles = [torch.rand(1, count, 3, 4, 4) for count in (3, 5)]
    pixels = encoder.pad([_encoded(pixel_values=tensor) for tensor in tiles]).student["pixel_values"]
    assert pixels.shape == (2, 5, 3, 4, 4)
    assert torch.equal(pixels[0, :3], tiles[0][0])
    assert torch.equal(pixels[1], tiles[1][0])
    assert not pixels[0, 3:].any()


def test_tensors_aligned_with_the_text_must_be_in_every_sample(processors):
    encoder = ChatEncoder(processors["llava"], max_length=99)
    with pytest.raises(AssertionError, match="a sample without token_type_ids"):
        encoder.pad([_encoded(), _encoded(token_type_ids=torch.ones(3, dtype=torch.long))])


FORMATS = {"text": NormalizedText(), "tokens": LocationTokens(num_bins=101), "object": PerceptionToken()}


@pytest.fixture(scope="module")
def folders(tiny_medgemma, tiny_llava, tiny_qwen2_vl):
    return dict(zip(FAMILIES, (tiny_medgemma, tiny_llava, tiny_qwen2_vl), strict=True))


@pytest.fixture(scope="module")
def make_encoder(folders):
    """A function that returns the encoder of a family with the tokens of a format; each is built once."""
    encoders = {}

    def encoder(family, name, **options):
        if (family, name) not in encoders:
            encoders[family, name] = AutoProcessor.from_pretrained(folders[family])
            tokens = [AddedToken(token, special=True, normalized=False) for token in FORMATS[name].tokens]
            encoders[family, name].tokenizer.add_tokens(tokens, special_tokens=True)
        max_length = options.pop("max_length", 4096)
        return ChatEncoder(encoders[family, name], max_length=max_length, marks=MarkWriter(FORMATS[name], **options))

    return encoder


def grounded(answer="Answer: <box> .", groups=((1, 2),), images=1, source="F, line 2"):
    """Return a question with a box, and an answer with two."""
    marks = [Mark(box=(0, 0, 30, 25)), Mark(box=(6, 5, 30, 50)), Mark(box=(30, 0, 60, 20))]
    turns = [Turn("user", "<image>" * images + "What is like <box>?", ((0,),)), Turn("assistant", answer, groups)]
    return Sample(turns, [picture(seed) for seed in range(images)], marks=marks, source=source)


def supervised_answer(encoded):
    """Return the supervised tokens of the only answer, without the end of the turn."""
    labels = encoded.targets["labels"]
    return labels[labels != IGNORE][:-1]


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("name", ["text", "tokens"])
@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_as_text_are_read_back_from_the_labels(make_encoder, family, name, pads):
    encoder, sample = make_encoder(family, name, pad_to_square=pads), grounded()
    encoded = encoder.encode(sample)
    assert encoded.frames == (Frame(60, 50, 0, 5, 60, 60) if pads else Frame(60, 50),)
    answer, reference = encoder.read_answer(supervised_answer(encoded), encoded.frames), encoder.reference(sample)
    assert without_spaces(answer.text) == without_spaces(reference.text)
    assert reference.marks == tuple(sample.marks[1:])
    assert reference.text == f"Answer: {encoder.marks.prepare(sample)[0].turns[1].text[8:-2]} ."
    assert answer.unreadable == 0
    for actual, true in zip(answer.marks, reference.marks, strict=True):
        assert np.abs(np.subtract(actual.box, true.box)).max() <= 60 / 200 + 1e-6
    assert not any(tensor.startswith("object_") for tensor in encoded.student)
    assert list(encoded.targets) == ["labels"]


@pytest.mark.parametrize("family", FAMILIES)
def test_objects_have_the_positions_of_their_tokens(make_encoder, family):
    encoder = make_encoder(family, "object", mask_size=8)
    encoded = encoder.encode(grounded())
    ids, positions = encoded.student["input_ids"], encoded.student["object_positions"]
    assert [encoder.tokenizer.decode(ids[place]) for place in positions] == ["<loc>"] * 3
    assert (ids == encoder.object_id).sum() == 3
    assert positions.tolist() == sorted(positions.tolist())
    # The state before an object is read, and the token of the first object of an answer is also supervised.
    assert (encoded.targets["labels"][positions] != IGNORE).tolist() == [False, True, True]
    assert encoded.targets["boxes_known"].tolist() == [False, True, True]
    assert encoded.targets["boxes"][1].tolist() == pytest.approx([0.1, 0.1, 0.5, 1])
    marks = [Mark(box=(1, 2, 3, 4)), Mark(box=(5, 6, 7, 8))]
    answer = encoder.read_answer(supervised_answer(encoded), encoded.frames, marks)
    assert (without_spaces(answer.text), answer.marks, answer.unreadable) == ("Answer:<box>.", tuple(marks), 0)
    assert encoder.reference(grounded()) == Answer("Answer: <box> .", tuple(grounded().marks[1:]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_contains_only_the_marks_of_the_question(make_encoder, family, name):
    encoder = make_encoder(family, name)
    prompt, complete = encoder.prompt(grounded()), encoder.encode(grounded())
    length = len(prompt)
    assert torch.equal(complete.student["input_ids"][:length], prompt.student["input_ids"])
    assert prompt.frames == complete.frames == (Frame(60, 50),)
    assert (prompt.targets["labels"] == IGNORE).all()
    if name == "object":
        assert torch.equal(prompt.student["object_positions"], complete.student["object_positions"][:1])
        assert torch.equal(prompt.student["object_boxes"], complete.student["object_boxes"][:1])
        assert not prompt.targets["boxes_known"].any()


def test_objects_of_an_earlier_answer_are_in_the_prompt_and_not_supervised(make_encoder):
    sample = grounded()
    later = [Turn("user", "And <box>?", ((0,),)), Turn("assistant", "<box>", ((0,),))]
    prompt = make_encoder("medgemma", "object").prompt(
        Sample([*sample.turns, *later], sample.images, marks=sample.marks)
    )
    assert len(prompt.student["object_positions"]) == 4
    assert (prompt.targets["labels"] == IGNORE).all()
    assert not prompt.targets["boxes_known"].any()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_of_objects(make_encoder, side):
    encoder = make_encoder("llava", "object", mask_size=8)
    several = grounded(images=2)
    several.marks[2] = Mark(box=(30, 0, 60, 20), mask=np.ones((50, 60), bool), image=1)
    plain = Sample([Turn("user", "Hello?"), Turn("assistant", "Hello.")])
    encoded = [encoder.encode(sample) for sample in (several, grounded("Answer: <box> .", ((1,),)), plain)]
    batch = encoder.pad(encoded, side)
    positions = batch.student["object_positions"]
    ids = batch.student["input_ids"]
    assert (positions >= 0).tolist() == [[True] * 3, [True, True, False], [False] * 3]
    for row, places in enumerate(positions.tolist()):
        assert places == [*(ids[row] == encoder.object_id).nonzero().squeeze(1).tolist(), -1, -1, -1][:3]
    # The image of the second sample is the third of the batch; entries without an object name the first image.
    assert batch.student["object_images"].tolist() == [[0, 0, 1], [2, 2, 0], [0, 0, 0]]
    assert batch.targets["boxes_known"].tolist() == [[False, True, True], [False, True, False], [False] * 3]
    assert batch.targets["masks_known"].tolist() == [[False, False, True], [False] * 3, [False] * 3]
    assert batch.student["object_masks"].shape == (3, 3, 8, 8)
    assert batch.student["object_masks"][0, 2].all()
    assert torch.equal(batch.targets["boxes"], batch.student["object_boxes"])
    assert torch.equal(batch.student["object_boxes"][1, :2], encoded[1].student["object_boxes"])
    # A sample is encoded equally alone and in a batch.
    assert torch.equal(
        encoder.pad(encoded[1:2], side).student["object_positions"][0],
        torch.cat([positions[1, :2]]) - (ids.shape[1] - len(encoded[1]) if side == "left" else 0),
    )


def test_an_object_after_the_truncation_is_unknown(make_encoder):
    sample = grounded("<box> " + "and many more words " * 9 + "<box>", ((1,), (2,)))
    whole = make_encoder("llava", "object", mask_size=8).encode(sample)
    places = whole.student["object_positions"].tolist()
    for length in (places[1] + 1, places[1] + 5, places[2], places[2] + 1):
        cut = make_encoder("llava", "object", mask_size=8, max_length=length).encode(sample)
        assert cut.truncated
        inside = [place < length for place in places]
        assert cut.student["object_positions"].tolist() == [
            place if is_inside else -1 for place, is_inside in zip(places, inside, strict=True)
        ]
        assert cut.targets["boxes_known"].tolist() == [False, *inside[1:]]
        assert len(cut.student["input_ids"]) == length
        assert cut.student["object_masks"].shape == (3, 8, 8)
    assert cut.student["object_positions"].tolist() == places


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("object", "where is <loc>?", "<loc>"),
        ("object", "where is <bin_3>?", None),
        ("tokens", "where is <bin_3>?", "<bin_3>"),
        ("tokens", "where is <b_st>?", "<b_st>"),
        ("tokens", "where is <loc>?", None),
        ("text", "where is <loc> and <bin_3>, {} or {0}, <box>?", None),
    ],
)
def test_control_tokens_in_a_text_are_refused(make_encoder, name, text, refused):
    sample = Sample([Turn("user", text), Turn("assistant", "x")], source="F, line 2")
    encoder = make_encoder("medgemma", name)
    if refused:
        for encode in (encoder.encode, encoder.prompt):
            with pytest.raises(DataError, match=f"F, line 2: the text contains the control token '{refused}'"):
                encode(sample)
    else:
        decoded = encoder.tokenizer.decode(encoder.encode(sample).student["input_ids"])
        assert without_spaces(text) in without_spaces(decoded)


def test_control_tokens_in_a_system_prompt_are_refused(processors):
    encoder = ChatEncoder(processors["medgemma"], max_length=99, system="Be <end_of_turn> good")
    with pytest.raises(DataError, match="control token '<end_of_turn>'"):
        encoder.encode(Sample([Turn("user", "a"), Turn("assistant", "b")]))


def test_errors_of_marks_name_the_row(make_encoder):
    for sample in (grounded(groups=((1,), (2,))), grounded(groups=((7,),))):
        for read in (make_encoder("llava", "text").encode, make_encoder("llava", "text").reference):
            with pytest.raises(DataError, match="^F, line 2: "):
                read(sample)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_without_boxes_an_answer_is_the_decoded_text(processors, family, data):
    tokenizer = processors[family].tokenizer
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    answer = ChatEncoder(processors[family], max_length=99).read_answer(torch.tensor(ids, dtype=torch.long))
    assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_padding_around_an_image_is_nearly_zero(processors):
    """The padding color is nearly zero after normalization: 8-bit colors cannot equal the mean exactly."""
    for family, size in (("medgemma", 896), ("llava", None)):
        sample = Sample([Turn("user", "<image>"), Turn("assistant", "b")], [picture(size=(80, 20))])
        encoder = ChatEncoder(processors[family], max_length=4096, marks=MarkWriter(pad_to_square=True))
        pixels = encoder.encode(sample).student["pixel_values"][0]
        rows = pixels.shape[1]
        assert size in (None, rows)
        assert pixels[:, : rows // 4].abs().max() < 0.03
        assert pixels[:, -(rows // 4) :].abs().max() < 0.03
        assert pixels[:, rows // 2].abs().max() > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_unpadded_images_are_passed_unchanged_to_the_processor(processors, family):
    image = picture()
    encoded = ChatEncoder(processors[family], max_length=4096).encode(
        Sample([Turn("user", "<image>"), Turn("assistant", "b")], [image])
    )
    direct = processors[family].image_processor([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(encoded.student["pixel_values"], direct)


def test_the_template_of_the_tokenizer_is_used(tiny_medgemma, tmp_path):
    folder = shutil.copytree(tiny_medgemma, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = None  # as for a processor without a template in its files
    sample = Sample([Turn("user", "<image> what?"), Turn("assistant", "this")], [picture()])
    expected = ChatEncoder(AutoProcessor.from_pretrained(tiny_medgemma), max_length=600).encode(sample)
    actual = ChatEncoder(processor, max_length=600).encode(sample)
    assert actual.targets["labels"].tolist() == expected.targets["labels"].tolist()
    assert actual.student["input_ids"].tolist() == expected.student["input_ids"].tolist()
