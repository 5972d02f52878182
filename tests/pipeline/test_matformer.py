"""Tests of the command `matformer`: the extracted model, its card, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from mllm.errors import ConfigError
from mllm.models.gemma3n.slicing import parse_layers, parse_widths, run_lengths
from mllm.pipeline.command import run_command
from mllm.pipeline.matformer import main
from mllm.tiny.checkpoints import write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("gemma3n", tmp_path_factory.mktemp("tiny") / "gemma3n")


def test_the_folder_of_the_model_is_printed(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--model", str(tiny), "--out", str(out)]
    assert run_command(main, [*options, "--ffn-widths", "128x2,200", "--drop-layers", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "3 layers of 128 (2 times), 200 neurons: " in printed.err
    model = AutoModelForCausalLM.from_pretrained(out)
    assert [layer.mlp.up_proj.out_features for layer in model.model.layers] == [128, 128, 200]
    card = (out / "README.md").read_text()
    assert "* layers kept, counted from 0: 0, 1, 3\n" in card and f"* base: `{tiny}`" in card
    assert "It is a custom slice" in card and "base_model" not in card

    assert run_command(main, [*options, "--drop-layers", "2"]) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "choose one slice: a published one with --matformer"),
        (["--matformer", "E2B", "--drop-layers", "2"], "choose one slice"),
        (["--matformer", "E2B"], r"slice of Gemma 3n E4B \(35 layers of one width\).* has 4 layers of 256 neurons"),
        (["--drop-layers", "0"], "layer 0, whose keys and values layer 2 uses"),
        (["--drop-layers", "5-3"], "--drop-layers 5-3: '5-3' is not a layer"),
        (["--ffn-widths", "12y3"], "--ffn-widths 12y3: '12y3' is not a width"),
    ],
)
def test_a_refused_slice_leaves_no_files(tiny, tmp_path, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        main(["--model", str(tiny), "--out", str(tmp_path / "out"), *options])
    assert not list(tmp_path.iterdir())


def test_parsing_of_widths_and_layers():
    assert parse_widths("16384x2, 8192") == [16384, 16384, 8192]
    assert parse_layers("3, 20-22,7") == [3, 20, 21, 22, 7]
    assert run_lengths(["a", "a", "b", "a"]) == "a (2 times), b, a"
