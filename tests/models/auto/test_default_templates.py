"""PaliGemma has no chat template of its own: conversations are encoded as its processor encodes prefix and suffix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mllm.config.schema import ModelArgs
from mllm.errors import DataError
from mllm.models.builder.builder import load_encoder
from mllm.models.encoding.chat import ChatEncoder
from mllm.structures import IGNORE, Sample, Turn
from mllm.tiny.checkpoints import write_tiny

PICTURES = [Image.new("RGB", size, (200, 20, 90)) for size in ((40, 30), (20, 50))]
QUESTION, ANSWER = "Is there a mass?", "no, a cyst"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("paligemma2", tmp_path_factory.mktemp("paligemma") / "model", vision={"image_size": 28})


def encoder_of(folder: Path, **options: str) -> ChatEncoder:
    encoder = load_encoder(ModelArgs("image-text", str(folder), max_length=64, **options))
    assert isinstance(encoder, ChatEncoder)
    return encoder


@pytest.mark.parametrize("count", [0, 1, 2])
def test_tokens_labels_and_prefix_are_those_of_the_processor(folder: Path, count: int) -> None:
    """Reference: `PaliGemmaProcessor` with `suffix`; its tokenizer for a text without an image, which it refuses."""
    sample = Sample([Turn("user", f"{QUESTION} {'<image>' * count}"), Turn("assistant", ANSWER)], PICTURES[:count])
    encoder = encoder_of(folder)
    encoded, prompt = encoder.encode(sample), encoder.prompt(sample)
    processor = AutoProcessor.from_pretrained(folder)
    if count:
        options = dict(suffix=ANSWER, return_tensors="pt")
        expected = processor(text="<image>" * count + QUESTION, images=PICTURES[:count], **options)
        labels, types = expected["labels"][0], expected["token_type_ids"][0]
        torch.testing.assert_close(encoded.student["pixel_values"], expected["pixel_values"])
    else:
        texts = (f"<bos>{QUESTION}\n", f"{ANSWER}<eos>")
        expected = processor.tokenizer(*texts, return_tensors="pt", return_token_type_ids=True)
        types = expected["token_type_ids"][0]
        labels = expected["input_ids"][0].where(types == 1, IGNORE)
    assert torch.equal(encoded.student["input_ids"], expected["input_ids"][0])
    assert torch.equal(encoded.student["token_type_ids"], types)
    assert torch.equal(encoded.targets["labels"], labels)
    prefix = int((types == 0).sum())
    assert torch.equal(prompt.student["input_ids"], expected["input_ids"][0, :prefix])
    assert not prompt.student["token_type_ids"].any()


def test_a_second_question_and_a_system_turn_are_refused(folder: Path) -> None:
    sample = Sample(
        [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")], source="F:3"
    )
    with pytest.raises(
        DataError, match="^F:3: the chat template refuses it: PaliGemma answers one question; make a row"
    ):
        encoder_of(folder).encode(sample)
    with pytest.raises(DataError, match="^F:3: .*PaliGemma has no system turn; write its text into the question"):
        encoder_of(folder, system="Be brief.").encode(replace(sample, turns=sample.turns[:2]))


def test_a_chat_template_of_the_config_replaces_the_default(folder: Path) -> None:
    template = "{{ bos_token }}{% for turn in messages %}{{ turn['content'][0]['text'] }}{% endfor %}"
    encoder = encoder_of(folder, chat_template=template)
    assert encoder.tokenizer.decode(encoder.prompt(Sample([Turn("user", "a")])).student["input_ids"]) == "<bos>a"
