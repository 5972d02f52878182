"""What `predict.py` prints is what the model says, asked as in training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from pydicom.data import get_testdata_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.errors import ConfigError
from mllm.pipeline.predict import main, parse

FEW = ["--max-new-tokens", "8"]


def _spoken_by_transformers(base: Path, adapter: Path, image: Path, question: str) -> str:
    """The oracle: PEFT, the processor's own template and `generate`, none of our code."""
    processor = AutoProcessor.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter).eval()
    content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_the_answer_alone_is_printed_and_is_what_transformers_says(
    talking_base: Path, talking_adapter: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pictures / "0.png"
    expected = _spoken_by_transformers(talking_base, talking_adapter, image, "What is this?")
    capsys.readouterr()
    assert main(["--adapter", str(talking_adapter), "--image", str(image), "--question", "What is this?", *FEW]) == 0
    assert capsys.readouterr().out == expected + "\n"
    assert expected


def test_the_base_alone_answers_otherwise(
    talking_base: Path, talking_adapter: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--image", str(pictures / "0.png"), "--question", "What is this?", *FEW]
    main(["--adapter", str(talking_adapter), *asked])
    adapted = capsys.readouterr().out
    main(["--model", str(talking_base), *asked])
    assert capsys.readouterr().out != adapted


def test_a_dicom_is_read_with_the_options_of_its_reader(
    talking_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--adapter", str(talking_adapter), "--image", get_testdata_file("CT_small.dcm"), "--question", "Normal?"]
    spoken = []
    for window in ("lung", "400,40", "bone"):
        assert main([*asked, "--window", window, "--frame", "0", *FEW]) == 0
        spoken.append(capsys.readouterr().out)
    assert len(set(spoken)) > 1, "the window changes nothing"
    with pytest.raises(ConfigError, match="did you mean 'lung'"):
        main([*asked, "--window", "lnug"])


def test_sampling_is_seeded(talking_adapter: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--adapter", str(talking_adapter), "--image", str(pictures / "0.png"), "--question", "What?", *FEW]
    spoken = []
    for seed in ("1", "1", "2"):
        main([*asked, "--temperature", "9", "--seed", seed])
        spoken.append(capsys.readouterr().out)
    assert spoken[0] == spoken[1] != spoken[2]


def test_places_are_printed_in_pixels_and_drawn_where_asked(
    talking_adapter: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pointing: Any
) -> None:
    one = ["--adapter", str(talking_adapter), "--question", "Where?", *FEW, "--image", str(pictures / "0.png")]
    assert main(one) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines == [
        "  1: box x1 y1 x2 y2 = 10.0 5.0 40.0 30.0",
        "  2: mask of 600 pixels",
        "  3: point x y = 70.0 50.0",
    ]
    assert os.listdir(tmp_path) == []
    main([*one, "--image", str(pictures / "1.png"), "--draw", str(tmp_path / "seen.png")])
    assert "  4 in image 2: box" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["seen-1.png", "seen-2.png"]
    assert Image.open(tmp_path / "seen-1.png").size == (80 * 7, 60 * 7)
    main([*one, "--draw", str(tmp_path / "one.png")])
    with pytest.raises(ConfigError, match=r"one\.png exists"):
        main([*one, "--draw", str(tmp_path / "one.png")])


@pytest.mark.parametrize(
    "wrong",
    [
        ["--question", "What?"],
        ["--adapter", "a", "--model", "b", "--question", "What?"],
        ["--adapter", "a"],
        ["--adapter", "a", "--batch", "b.jsonl"],
        ["--adapter", "a", "--batch", "b.jsonl", "--out", "c.jsonl", "--question", "What?"],
        ["--adapter", "a", "--batch", "b.jsonl", "--out", "c.jsonl", "--image", "d.png"],
        ["--model", "a", "--base", "b", "--question", "What?"],
        ["--adapter", "a", "--question", "What?", "--max-new-tokens", "0"],
        ["--adapter", "a", "--question", "What?", "--temperature", "-1"],
        ["--adapter", "a", "--question", "What?", "--draw", "b.png"],
        ["--adapter", "a", "--question", "What?", "--chat"],
        ["--adapter", "a", "--chat", "--draw", "b.png", "--image", "c.png"],
        ["--adapter", "a", "--chat", "--modality", "CT"],
        ["--adapter", "a", "--question", " "],
        ["--adapter", "a", "--question", "What?", "--frames", "ED=1,ES=2"],
        ["--adapter", "a", "--video", "b.avi", "--frames", "ED=1,ES=2", "--image", "c.png"],
        ["--adapter", "a", "--video", "b.avi", "--frames", "ED=1,ES=2", "--frame", "3"],
        ["--adapter", "a", "--question", "What?", "--load-in-4bit", "--load-in-8bit"],
    ],
)
def test_a_command_line_that_does_not_fit_together_exits_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--window", "lung,x"), "'lung,x' is neither a name nor"), (("--max-new-tokens", "0"), "'0' is no whole number")],
)
def test_a_wrong_option_is_said_in_words(
    capsys: pytest.CaptureFixture[str], options: tuple[str, str], said: str
) -> None:
    with pytest.raises(SystemExit):
        parse(["--model", "m", "--question", "What?", *options])
    assert said in capsys.readouterr().err
