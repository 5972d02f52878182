"""`show.py` prints what a run would use, and loads no weights for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoProcessor

from mllm.dataset.builder import build_dataset
from mllm.errors import ConfigError
from mllm.models.encoding.chat import ChatEncoder
from mllm.pipeline.show import IMAGE_TOKENS, PLAIN, SUPERVISED, described, main


@pytest.fixture
def config(talking_base: Path, pictures: Path, tmp_path: Path) -> Path:
    """A config file of one split about one picture."""
    (tmp_path / "rows.jsonl").write_text('{"image": "0.png", "question": "What is this?", "answer": "Noise."}\n')
    path = tmp_path / "mine.py"
    data = dict(type="VQADataset", data_path=str(tmp_path / "rows.jsonl"), image_folder=str(pictures))
    path.write_text(
        f"model_args = dict(type='medgemma', model_name_or_path={str(talking_base)!r}, image_token_len=64)\n"
        f"data_args = dict(train={data!r})\n"
        "training_args = dict(max_steps=2)\n"
        "objectives = dict(next_token=dict(type='NextToken'))\n"
    )
    return path


def test_every_registry_is_shown_with_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registries"]) == 0
    shown = capsys.readouterr().out
    for name in ("MODELS", "medgemma", "VQADataset", ".nii.gz", "NextToken", "adapter", "merged"):
        assert f"{name} " in shown
    entries = [line.split() for line in shown.splitlines() if line.startswith("  ") and line.strip() != "(none)"]
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
    shown = capsys.readouterr().out
    assert "rows.jsonl, line 1: " in shown
    assert "<start_of_image><image x 64><end_of_image>" in shown
    assert "pixel_values [1, 3, 224, 224]" in shown
    assert "supervised: 'Noise.<end_of_turn>" in shown
    assert "\033" not in shown


def test_what_is_not_there_is_said(config: Path) -> None:
    with pytest.raises(ConfigError, match="has no split 'trian': did you mean 'train'?"):
        main(["sample", str(config), "--split", "trian"])
    with pytest.raises(ConfigError, match="--index 1: the split 'train' has 1 samples"):
        main(["sample", str(config), "--index", "1"])


def test_a_terminal_gets_colors(talking_base: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "0.png", "question": "What?", "answer": "Noise."}\n')
    dataset = build_dataset(dict(type="VQADataset", data_path=str(tmp_path / "rows.jsonl"), image_folder=str(pictures)))
    encoder = ChatEncoder(AutoProcessor.from_pretrained(talking_base), max_length=512)
    encoded = encoder.encode(dataset.sample(0))
    shown = described(encoded, encoder.tokenizer, encoder.processor.image_token_ids, color=True)
    assert f"{SUPERVISED}Noise.<end_of_turn>" in shown
    assert f"{IMAGE_TOKENS}<image x 256>{PLAIN}" in shown
