"""Tests of the command `export`: GGUF files of models and adapters, cleanup after failures, and early refusals."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from mllm.errors import ConfigError
from mllm.export.gguf import k_quants
from mllm.export.merge import merge
from mllm.export.settings import write_settings
from mllm.pipeline import export as pipeline
from mllm.pipeline.export import main
from mllm.run_files import TRAINED as HEADS
from mllm.tiny.adapter import write_tiny_adapter
from mllm.tiny.checkpoints import write_tiny
from tests.export.gguf.conftest import write_model
from tests.export.gguf.test_lora import write_lora


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text-only Gemma 3."""
    return write_model("gemma3", tmp_path_factory.mktemp("model") / "tiny-gemma3", num_hidden_layers=2)


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an adapter of `model`."""
    folder = tmp_path_factory.mktemp("run")
    write_lora(model, folder / "adapter")
    write_settings(folder / "adapter", {"type": "causal-lm"})
    return folder


def values(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}


def test_a_model_becomes_one_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "answers.gguf"
    assert main(["--model", str(model), "--format", "gguf", "--out", str(out), "--type", "f16"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}  {out.stat().st_size / 1e6:,.1f} MB\nstart it with: llama-cli -m {out}\n"
    assert "answers.gguf: 100%" in printed.err
    assert [path.name for path in out.parent.iterdir()] == ["answers.gguf"]
    fields = gguf.GGUFReader(out).fields
    assert fields["general.name"].contents() == "tiny-gemma3"
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16


def test_an_adapter_is_merged_first(model: Path, run: Path, tmp_path: Path) -> None:
    main(["--model", str(run), "--out", str(tmp_path / "first-aid.gguf"), "--type", "f32"])
    assert [path.name for path in tmp_path.iterdir()] == ["first-aid.gguf"]
    merged = merge(str(run / "adapter"), tmp_path / "merged")
    main(["--model", str(merged), "--out", str(tmp_path / "merged.gguf"), "--type", "f32"])
    main(["--model", str(model), "--out", str(tmp_path / "plain.gguf"), "--type", "f32"])
    ours, expected, plain = (values(tmp_path / f"{name}.gguf") for name in ("first-aid", "merged", "plain"))
    assert all(np.array_equal(ours[name], expected[name]) for name in expected)
    assert not np.array_equal(ours["blk.0.attn_q.weight"], plain["blk.0.attn_q.weight"])
    fields = gguf.GGUFReader(tmp_path / "first-aid.gguf").fields
    assert fields["general.name"].contents() == "first-aid"
    assert fields["general.base_model.0.name"].contents() == "tiny-gemma3"


def test_a_lora_becomes_an_adapter_of_llama_cpp(
    model: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lora.gguf"
    main(["--model", str(run), "--format", "gguf-lora", "--out", str(out)])
    assert f"llama-cli -m BASE.gguf --lora {out}" in capsys.readouterr().out
    assert {name.rpartition(".")[2] for name in values(out)} == {"lora_a", "lora_b"}
    with pytest.raises(ConfigError, match="is a whole model, and --format gguf-lora writes adapters; use gguf"):
        main(["--model", str(model), "--format", "gguf-lora", "--out", str(tmp_path / "other.gguf")])


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_a_failure_leaves_no_files(
    run: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights: list[Path] = []

    def fails(folder: Path, out: Path, kind: str, **options: Any) -> Path:
        weights.extend(folder.glob("*.safetensors"))
        raise error

    monkeypatch.setattr("mllm.export.gguf.export.export_model", fails)
    with pytest.raises(type(error)):
        main(["--model", str(run / "adapter"), "--out", str(tmp_path / "out.gguf")])
    assert weights
    assert list(tmp_path.iterdir()) == []


def test_both_files_of_a_model_with_images(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tiny("medgemma", tmp_path_factory.mktemp("base") / "tiny-medgemma", vision={"image_size": 224})
    adapter = write_tiny_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter")
    options = ["--model", str(adapter), "--out", str(tmp_path / "a.gguf"), "--mmproj", str(tmp_path / "b.gguf")]
    assert main([*options, "--type", "q8_0"]) == 0
    assert f"llama-mtmd-cli -m {tmp_path / 'a.gguf'} --mmproj {tmp_path / 'b.gguf'}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]
    assert any(name.startswith("v.blk.0.") for name in values(tmp_path / "b.gguf"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--type", "int"], r"--type int is unknown; known are f32, [^;]*q2_k$"),
        (["--type", "q4_m"], r"--type q4_m is unknown: did you mean 'q4_k_m'\?; known are f32, f16, bf16, q8_0"),
        (["--mmproj", "mmproj.gguf"], "tiny-gemma3' has no mmproj file: it has no vision tower; omit --mmproj"),
        (["--type", "q6_k"], "q6_k quantizes 256 values of a row together, and its rows have 64, 128"),
    ],
)
def test_wrong_options_are_refused(model: Path, more: list[str], sentence: str, tmp_path: Path) -> None:
    if "q6_k" in more:
        pytest.importorskip("llama_cpp")
    with pytest.raises(ConfigError, match=sentence):
        main(["--model", str(model), "--out", str(tmp_path / "out.gguf"), *more])
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .*out\.gguf exists; choose another name"):
        main(["--model", str(model), "--out", str(tmp_path / "out.gguf")])
    with pytest.raises(ConfigError, match=r"--mmproj .*out\.gguf exists"):
        main(["--model", str(model), "--out", str(tmp_path / "new"), "--mmproj", str(tmp_path / "out.gguf")])
    assert (tmp_path / "out.gguf").read_text() == "mine"


def test_a_missing_model_or_package_is_named(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model 'absent' does not exist; download it first: hf download ORG/NAME"):
        main(["--model", "absent", "--out", str(tmp_path / "out.gguf")])
    monkeypatch.setattr(pipeline.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"need the package gguf, which is not installed: run pip install -e '.\[gguf\]'"
    ):
        main(["--model", str(model), "--out", str(tmp_path / "out.gguf")])


Refused = Callable[[Path], Path]


def t5gemma(folder: Path) -> Path:
    return write_tiny("t5gemma", folder)


def vaultgemma(folder: Path) -> Path:
    return write_tiny("vaultgemma", folder)


def with_heads(folder: Path) -> Path:
    write_model("gemma3", folder, num_hidden_layers=1)
    (folder / HEADS).touch()
    return folder


def student(folder: Path) -> Path:
    write_tiny("gemma3n-student", folder)
    write_settings(folder, {"type": "gemma3n-student", "part": "vision", "heads": {"measures": {}}})
    return folder


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (t5gemma, "llama.cpp has no T5Gemma, whose encoder and decoder are Gemma 2's and not T5's"),
        (vaultgemma, "llama.cpp has no VaultGemma, and its softcaps fit neither `gemma` nor `gemma2`"),
        (with_heads, "it has heads (heads.safetensors), which llama.cpp cannot run"),
        (student, "it is a vision model, which generates no text"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_models_that_llama_cpp_cannot_run_are_refused(write: Refused, sentence: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    with pytest.raises(ConfigError, match=re.escape(f"{folder}' cannot become a GGUF: {sentence}")):
        main(["--model", str(folder), "--out", str(tmp_path / "out.gguf")])
    assert not (tmp_path / "out.gguf").exists()


def test_adapters_are_refused_before_they_are_merged(
    run: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The weights of the base are damaged, so a merge would raise another error."""
    base = Path(shutil.copytree(model, tmp_path / "damaged"))
    (base / "model.safetensors").write_bytes(b"damaged")
    options = ["--base", str(base), "--out", str(tmp_path / "out.gguf")]
    with pytest.raises(ConfigError, match=r"the weights of .*damaged. cannot be read"):
        main(["--model", str(run), *options])
    monkeypatch.setattr(k_quants.importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else name)
    with pytest.raises(ConfigError, match=r"--type q4_k_m needs llama.cpp, which is not installed"):
        main(["--model", str(run), *options, "--type", "q4_k_m"])
    adapter = Path(shutil.copytree(run / "adapter", tmp_path / "adapter"))
    write_settings(adapter, {"type": "medgemma", "image_token_len": 128})
    with pytest.raises(ConfigError, match="its images have 128 tokens from a rectangular pool, and llama.cpp supports"):
        main(["--model", str(adapter), *options])
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--modle", "x"], "there is no option --modle: did you mean '--model'?"),
        (["--model", "x", "--out", "y", "--typ=f32"], "there is no option --typ: did you mean '--type'?"),
        (["--model", "x", "--out", "y", "--format", "ggfu"], "invalid choice: 'ggfu'"),
    ],
)
def test_a_misspelled_option_is_named(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_slice_is_extracted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_tiny("gemma3n", tmp_path / "gemma3n")
    options = ["--model", str(base), "--ffn-widths", "128", "--out"]
    assert main([*options, str(tmp_path / "slice")]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "slice").model.layers[0].mlp.up_proj.out_features == 128
    with pytest.raises(ConfigError, match="--type is for GGUF files, but a slice is written as a model folder"):
        main([*options, str(tmp_path / "other"), "--type", "q8_0"])
    with pytest.raises(ConfigError, match="choose one slice"):
        main([*options, str(tmp_path / "other"), "--matformer", "E2B"])
