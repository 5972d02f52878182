"""Tests of `show.py`: registries, resolved configs and samples, without loading weights."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from mllm.config.hardware import CHECKOUT
from mllm.dataset.builder import build_dataset
from mllm.errors import ConfigError
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.views import ViewEncoder
from mllm.pipeline.show import main
from mllm.report.sample import IMAGE_TOKENS, PLAIN, SUPERVISED, describe_sample
from mllm.structures import Sample


@pytest.fixture
def config(generating_base: Path, pictures: Path, tmp_path: Path) -> Path:
    """A config file with one split of one image."""
    (tmp_path / "rows.jsonl").write_text('{"image": "0.png", "question": "What is this?", "answer": "Noise."}\n')
    path = tmp_path / "mine.py"
    data = dict(type="VQADataset", data_path=str(tmp_path / "rows.jsonl"), image_folder=str(pictures))
    path.write_text(
        f"model_args = dict(type='medgemma', model_name_or_path={str(generating_base)!r}, image_token_len=64)\n"
        f"data_args = dict(train={data!r})\n"
        "training_args = dict(max_steps=2)\n"
        "objectives = dict(next_token=dict(type='NextToken'))\n"
    )
    return path


def test_every_registry_is_shown_with_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registries"]) == 0
    output = capsys.readouterr().out
    for name in ("MODELS", "medgemma", "VQADataset", ".nii.gz", "NextToken", "adapter", "merged"):
        assert f"{name} " in output
    entries = [line.split() for line in output.splitlines() if line.startswith("  ") and line.strip() != "(none)"]
    assert all(len(words) > 2 for words in entries), "an entry has no docstring"


def test_the_config_is_resolved_and_runnable(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", str(config), "--cfg-options", "model_args.lora_r=3"]) == 0
    values: dict[str, object] = {}
    exec(capsys.readouterr().out, values)
    model_args = values["model_args"]
    assert isinstance(model_args, dict)
    assert (model_args["lora_r"], model_args["image_token_len"], model_args["max_length"]) == (3, 64, 1024)


def test_a_sample_is_shown_as_the_model_reads_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(config)]) == 0
    output = capsys.readouterr().out
    assert "rows.jsonl, line 1: " in output
    assert "<start_of_image><image x 64><end_of_image>" in output
    assert "pixel_values [1, 3, 224, 224]" in output
    assert "supervised: 'Noise.<end_of_turn>" in output
    assert "\033" not in output


def test_source_and_target_of_an_encoder_decoder_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(CHECKOUT / "config" / "training_configs" / "t5gemma_mtnt_en_fr.py"), "--tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (source,) = [line for line in lines if line.startswith("source: ")]
    (target,) = [line for line in lines if line.startswith("target: ")]
    (supervised,) = [line for line in lines if line.startswith("supervised: ")]
    assert len(source) > len("source: ")
    answer = ast.literal_eval(supervised.removeprefix("supervised: "))
    assert answer and target.endswith(answer), "the decoder reads the answer, and all of it is supervised"


def test_views_and_measures_are_shown_for_a_model_without_text(tiny_medsiglip: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(tiny_medsiglip)
    encoder = ViewEncoder(processor, views=["ED", "ES"], measures=["EF", "EDV"])
    images = [Image.new("RGB", (40, 40), (gray,) * 3) for gray in (10, 200)]
    sample = Sample([], images=images, views=["ES", "ED"], measures={"EF": 55.25}, source="a.avi")
    lines = describe_sample(encoder.encode(sample), encoder, color=True).splitlines()
    assert lines == ["a.avi: views ED, ES", "tensors: pixel_values [2, 3, 112, 112]", "", "EF: 55.2 %", "EDV: unknown"]


def test_a_missing_split_or_sample_is_refused(config: Path) -> None:
    with pytest.raises(ConfigError, match="has no split 'trian': did you mean 'train'?"):
        main(["sample", str(config), "--split", "trian"])
    with pytest.raises(ConfigError, match="--index 1: the split 'train' has 1 samples"):
        main(["sample", str(config), "--index", "1"])


def test_a_terminal_gets_colors(generating_base: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "0.png", "question": "What?", "answer": "Noise."}\n')
    dataset = build_dataset(dict(type="VQADataset", data_path=str(tmp_path / "rows.jsonl"), image_folder=str(pictures)))
    encoder = ChatEncoder(AutoProcessor.from_pretrained(generating_base), max_length=512)
    encoded = encoder.encode(dataset.sample(0))
    text = describe_sample(encoded, encoder, color=True)
    assert f"{SUPERVISED}Noise.<end_of_turn>" in text
    assert f"{IMAGE_TOKENS}<image x 256>{PLAIN}" in text
