"""`merge.py` writes a model that says what the adapter said, or says why not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllm.errors import ConfigError
from mllm.export.settings import write_settings
from mllm.pipeline.merge import main, memory_needed, refuse_too_large
from mllm.pipeline.predict import main as predict


def test_the_merged_model_answers_as_the_adapter_does(
    talking_adapter: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = Path(shutil.copytree(talking_adapter, tmp_path / "adapter"))
    settings = dict(image_size=None, image_token_len=64, max_length=300, system="Be brief.", turn_end=None)
    write_settings(adapter, {"type": "medgemma", **settings})
    out = tmp_path / "deep" / "merged"
    assert main(["--adapter", str(adapter), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert json.loads((out / "export_report.json").read_text())["max_abs_difference"] < 1e-4
    asked = ["--image", str(pictures / "0.png"), "--question", "What is this?", "--max-new-tokens", "8"]
    predict(["--adapter", str(adapter), *asked])
    spoken = capsys.readouterr().out
    predict(["--model", str(out), *asked])
    assert capsys.readouterr().out == spoken
    assert spoken.strip()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_checkpoint_keeps_its_dtype(
    talking_base: Path, talking_adapter: Path, tmp_path: Path, precision: str
) -> None:
    base = Path(shutil.copytree(talking_base, tmp_path / "base"))
    halves = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    out = tmp_path / "merged"
    main(["--adapter", str(talking_adapter), "--base", str(base), "--out", str(out), "--precision", precision])
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    compared = json.loads((out / "export_report.json").read_text())["compared_in"]
    assert compared == {"fp32": "float32", "bf16": "bfloat16"}[precision]


def test_a_folder_that_holds_something_is_not_overwritten(talking_adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        main(["--adapter", str(talking_adapter), "--out", str(tmp_path)])
    assert os.listdir(tmp_path) == ["precious"]


def test_a_base_that_is_quantized_alone_is_refused(talking_base: Path, talking_adapter: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(talking_base, tmp_path / "base"))
    config = base / "config.json"
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    config.write_text(json.dumps(json.loads(config.read_text()) | quantized))
    with pytest.raises(ConfigError, match="quantized weights alone.*--base"):
        main(["--adapter", str(talking_adapter), "--base", str(base), "--out", str(tmp_path / "merged")])
    assert os.listdir(tmp_path) == ["base"]


def test_weights_larger_than_the_memory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    assert memory_needed(tmp_path, itemsize=2, precision="fp32") == 2000
    assert memory_needed(tmp_path, itemsize=2, precision="bf16") == 1000
    refuse_too_large(2000, 2000, "fp32")
    with pytest.raises(ConfigError, match=r"fp32 needs 17\.2 GB .* has 12\.7 GB: use --precision bf16"):
        refuse_too_large(17_200_000_000, 12_700_000_000, "fp32")
