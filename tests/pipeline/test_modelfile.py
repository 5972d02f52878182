"""Tests of the command `modelfile`: the Modelfile, and the facts and card of a folder of GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.export.card import card_text
from mllm.export.facts import Facts, Split, read_facts, write_facts
from mllm.export.settings import write_settings
from mllm.pipeline.modelfile import main
from mllm.tiny.checkpoints import write_tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny text model with the settings, facts and card of an export."""
    folder = write_tiny("gemma3n", tmp_path / "merged")
    settings = {"type": "causal-lm", "system": "Be brief.", "max_length": 512}
    write_settings(folder, settings)
    facts = Facts(
        base="google/gemma-3n-E4B-it",
        settings=settings,
        data={"train": Split("TextQADataset", 8)},
        updates=3,
        privacy={"guarantee": "(3, 1e-05)-differentially private", "outside_the_guarantee": [], "warnings": []},
    )
    write_facts(folder, facts)
    (folder / "README.md").write_text(card_text("merged", facts))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.gguf").write_bytes(b"GGUF")
    return folder


def test_the_modelfile_is_next_to_the_weights(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "mmproj.gguf").write_bytes(b"GGUF")
    options = ["--model", str(model), "--gguf", str(out / "model.gguf"), "--mmproj", str(tmp_path / "mmproj.gguf")]
    assert main([*options, "--top-k", "64", "--max-new-tokens", "200"]) == 0
    assert capsys.readouterr().out == f"{out / 'Modelfile'}\n"
    text = (out / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\nFROM ../mmproj.gguf\nTEMPLATE")
    for line in (
        'SYSTEM """Be brief."""',
        "PARAMETER temperature 0.0",
        "PARAMETER top_k 64",
        "PARAMETER num_predict 200",
        "PARAMETER num_ctx 512",
        'PARAMETER stop "<end_of_turn>"',
        'PARAMETER stop "<eos>"',
    ):
        assert f"\n{line}\n" in text
    assert 'LICENSE """Gemma is provided under the Gemma terms of use' in text


def test_gguf_files_without_a_card_get_one(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["--model", str(model), "--gguf", str(out / "model.gguf")])
    card = (out / "README.md").read_text()
    assert "# GGUF files for gemma-3n-E4B-it" in card
    assert "* train: `TextQADataset`, 8 samples" in card
    assert "(3, 1e-05)-differentially private" in card
    assert read_facts(out) == read_facts(model)
    (out / "README.md").write_text("mine")
    main(["--model", str(model), "--gguf", str(out / "model.gguf")])
    assert (out / "README.md").read_text() == "mine"


def test_an_adapter_follows_its_base(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "lora.gguf").write_bytes(b"GGUF")
    options = ["--model", str(model), "--gguf", str(tmp_path / "out" / "model.gguf")]
    main([*options, "--adapter-gguf", str(tmp_path / "out" / "lora.gguf"), "--out", str(tmp_path / "Modelfile")])
    assert (tmp_path / "Modelfile").read_text().startswith("FROM ./out/model.gguf\nADAPTER ./out/lora.gguf\n")


def test_wrong_files_are_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other bytes")
    with pytest.raises(
        ConfigError, match=r"--mmproj .*model\.safetensors is not a GGUF file: export\.py --format gguf"
    ):
        options = ["--gguf", str(tmp_path / "out" / "model.gguf"), "--mmproj", str(tmp_path / "model.safetensors")]
        main(["--model", str(model), *options])
    with pytest.raises(ConfigError, match=r"--gguf .*absent\.gguf does not exist"):
        main(["--model", str(model), "--gguf", str(tmp_path / "absent.gguf")])
    with pytest.raises(ConfigError, match="--model .*absent does not exist"):
        main(["--model", str(tmp_path / "absent"), "--gguf", str(tmp_path / "out" / "model.gguf")])
