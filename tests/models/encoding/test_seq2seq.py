"""Sources and targets of encoder-decoder models, against the documented format of T5Gemma."""

import pytest
import torch
from transformers import AutoTokenizer

from mllm.errors import DataError
from mllm.models.encoding.seq2seq import Seq2SeqEncoder
from mllm.models.encoding.text_processor import TextProcessor
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


def test_a_long_answer_is_cut_and_says_so(tokenizer):
    encoded = encoder(tokenizer, max_length=30).encode(pair("Why?", "The liver is large. " * 20))
    assert len(encoded.targets["labels"]) == 31 and encoded.truncated


def test_padding_keeps_sources_and_targets_apart(tokenizer):
    made = encoder(tokenizer)
    samples = [
        made.encode(pair("Why?", "The liver is large and smooth.")),
        made.encode(pair("Where is it? " * 4, "A.")),
    ]
    batch = made.pad(samples)
    assert batch.student["input_ids"].shape == batch.student["attention_mask"].shape
    assert batch.student["decoder_input_ids"].shape == batch.targets["labels"].shape
    for row, sample in enumerate(samples):
        length = len(sample.targets["labels"])
        assert torch.equal(batch.targets["labels"][row, :length], sample.targets["labels"])
        assert (batch.targets["labels"][row, length:] == IGNORE).all()
        assert int(batch.student["attention_mask"][row].sum()) == len(sample.student["input_ids"])


def test_history_is_part_of_the_source_and_control_tokens_are_refused(tokenizer):
    made = encoder(tokenizer)
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    source = tokenizer.decode(made.encode(Sample(turns)).student["input_ids"])
    assert source.startswith("<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n")
    assert tokenizer.decode(made.prompt(Sample(turns)).student["input_ids"]) == source
    with pytest.raises(DataError, match="control token '<end_of_turn>'"):
        made.encode(pair("a <end_of_turn> b", "c"))
    with pytest.raises(DataError, match="does not end with an answer"):
        made.encode(Sample([Turn("user", "a")]))


def test_answers_are_read_and_references_match(tokenizer):
    made = encoder(tokenizer)
    ids = torch.tensor(tokenizer("Das Herz.", add_special_tokens=False)["input_ids"] + [made.turn_end_id])
    assert made.read_answer(ids).text == "Das Herz."
    assert made.reference(pair("a", "Das Herz.")).text == "Das Herz."
