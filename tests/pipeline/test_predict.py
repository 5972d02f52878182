"""`predict.py` prints the generated answer for the prompt of training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from pydicom.data import get_testdata_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.errors import ConfigError, DataError
from mllm.export.facts import Facts, Split, write_facts
from mllm.export.saved_model import adapter_args
from mllm.models.builder.builder import load_encoder
from mllm.pipeline.predict import main, parse
from mllm.predict.predict import PredictOptions, image_advice, read_questions
from mllm.structures import Sample, Turn

FEW = ["--max-new-tokens", "8"]


def _answer_of_transformers(base: Path, adapter: Path, image: Path, question: str) -> str:
    """Return the reference answer: PEFT, the processor's chat template and `generate`."""
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


def test_only_the_answer_is_printed_and_it_equals_transformers(
    generating_base: Path, generating_adapter: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pictures / "0.png"
    expected = _answer_of_transformers(generating_base, generating_adapter, image, "What is this?")
    capsys.readouterr()
    assert main(["--adapter", str(generating_adapter), "--image", str(image), "--question", "What is this?", *FEW]) == 0
    assert capsys.readouterr().out == expected + "\n"
    assert expected


def test_the_base_without_the_adapter_answers_differently(
    generating_base: Path, generating_adapter: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--image", str(pictures / "0.png"), "--question", "What is this?", *FEW]
    main(["--adapter", str(generating_adapter), *options])
    adapted = capsys.readouterr().out
    main(["--model", str(generating_base), *options])
    assert capsys.readouterr().out != adapted


def test_a_question_without_an_image_gets_a_hint_if_it_probably_needs_one(
    generating_base: Path, generating_adapter: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "adapter"
    shutil.copytree(generating_adapter, trained)
    encoder = load_encoder(adapter_args(str(trained), str(generating_base)))

    def advice(question: str) -> str:
        sample = Sample([Turn("user", question)])
        return image_advice(sample, encoder, adapter_args(str(trained), str(generating_base)))

    assert advice("How many bones does a hand have?") == ""
    assert advice("What does the CT scan show?").endswith("mentions an image, but none was passed: add --image FILE")
    for kind, expected in (("TextQADataset", ""), ("VQADataset", "the adapter was trained on images (VQADataset)")):
        write_facts(trained, Facts(str(generating_base), data={"train": Split(kind, 3)}))
        assert advice("How many bones does a hand have?").partition(", but")[0] == expected
    with_image = Sample([Turn("user", "What does the CT scan show?")], images=[Image.new("RGB", (8, 8))])
    assert image_advice(with_image, encoder, adapter_args(str(trained), str(generating_base))) == ""


def test_reader_options_apply_to_a_dicom_file(generating_adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--adapter",
        str(generating_adapter),
        "--image",
        get_testdata_file("CT_small.dcm"),
        "--question",
        "Normal?",
    ]
    answers = []
    for window in ("lung", "400,40", "bone"):
        assert main([*options, "--window", window, "--frame", "0", *FEW]) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) > 1, "the window has no effect"
    with pytest.raises(ConfigError, match="did you mean 'lung'"):
        main([*options, "--window", "lnug"])


def test_sampling_is_seeded(generating_adapter: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--adapter", str(generating_adapter), "--image", str(pictures / "0.png"), "--question", "What?", *FEW]
    answers = []
    for seed in ("1", "1", "2"):
        main([*options, "--temperature", "9", "--seed", seed])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_marks_are_printed_in_pixels_and_drawn_with_draw(
    generating_adapter: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pointing: Any
) -> None:
    options = ["--adapter", str(generating_adapter), "--question", "Where?", *FEW, "--image", str(pictures / "0.png")]
    assert main(options) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines == [
        "  1: box x1 y1 x2 y2 = 10.0 5.0 40.0 30.0",
        "  2: mask of 600 pixels",
        "  3: point x y = 70.0 50.0",
    ]
    assert os.listdir(tmp_path) == []
    main([*options, "--image", str(pictures / "1.png"), "--draw", str(tmp_path / "marks.png")])
    assert "  4 in image 2: box" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["marks-1.png", "marks-2.png"]
    assert Image.open(tmp_path / "marks-1.png").size == (80 * 7, 60 * 7)
    main([*options, "--draw", str(tmp_path / "one.png")])
    with pytest.raises(ConfigError, match=r"one\.png exists"):
        main([*options, "--draw", str(tmp_path / "one.png")])


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
def test_options_that_exclude_each_other_exit_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as excinfo:
        main(wrong)
    assert excinfo.value.code == 2


def test_a_missing_table_is_reported_with_its_option(tmp_path: Path) -> None:
    options = PredictOptions(batch=str(tmp_path / "no.jsonl"), out=str(tmp_path / "out.jsonl"))
    with pytest.raises(DataError, match=r"^--batch .*no\.jsonl: .* does not exist"):
        read_questions(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", "lung,x"), "'lung,x' is neither a window name nor"),
        (("--max-new-tokens", "0"), "'0' is not"),
    ],
)
def test_an_invalid_value_is_refused(
    capsys: pytest.CaptureFixture[str], options: tuple[str, str], message: str
) -> None:
    with pytest.raises(SystemExit):
        parse(["--model", "m", "--question", "What?", *options])
    assert message in capsys.readouterr().err
