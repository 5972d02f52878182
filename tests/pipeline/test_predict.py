"""What `predict.py` prints is what the model says, asked as in training."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from pydicom.data import get_testdata_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.errors import ConfigError, DataError
from mllm.models import generation
from mllm.pipeline.predict import main, parse
from mllm.structures import Answer, Mark

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


def test_a_file_of_questions_is_answered_in_order(
    talking_adapter: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    batch = ["--adapter", str(talking_adapter), "--batch", str(pictures / "questions.jsonl"), "--out", str(out), *FEW]
    assert main([*batch, "--batch-size", "3"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    given = [json.loads(line) for line in (pictures / "questions.jsonl").read_text().splitlines()]
    predictions = [row.pop("prediction") for row in rows]
    assert rows == given
    capsys.readouterr()
    main(["--adapter", str(talking_adapter), "--image", str(pictures / "2.png"), "--question", "CT: Why?", *FEW])
    assert capsys.readouterr().out == predictions[2] + "\n"
    with pytest.raises(ConfigError, match=r"out\.jsonl exists"):
        main(batch)


def test_a_bad_row_is_named_or_skipped(talking_adapter: Path, pictures: Path, tmp_path: Path) -> None:
    rows = [
        {"image": "0.png", "question": "What?"},
        {"image": "absent.png", "question": "What?"},
        {"image": "1.png", "question": "One <end_of_turn> two?"},
        {"image": "2.png", "qestion": "What?"},
        {"image": "2.png", "question": "What?"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    batch = ["--adapter", str(talking_adapter), "--batch", str(file), "--image-folder", str(pictures), *FEW]
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: .*absent\.png"):
        main([*batch, "--out", str(out)])
    assert os.listdir(tmp_path) == ["rows.jsonl"]
    assert main([*batch, "--out", str(out), "--on-error", "skip"]) == 0
    assert [json.loads(line)["image"] for line in out.read_text().splitlines()] == ["0.png", "2.png"]


def test_a_file_without_a_usable_row_is_refused(talking_adapter: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"image": "absent.png", "question": "What?"}\n')
    batch = ["--adapter", str(talking_adapter), "--batch", str(file), "--out", str(tmp_path / "out.jsonl")]
    with pytest.raises(DataError, match="none of its 1 rows"):
        main([*batch, "--on-error", "skip"])
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_sampling_is_seeded(talking_adapter: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--adapter", str(talking_adapter), "--image", str(pictures / "0.png"), "--question", "What?", *FEW]
    spoken = []
    for seed in ("1", "1", "2"):
        main([*asked, "--temperature", "9", "--seed", seed])
        spoken.append(capsys.readouterr().out)
    assert spoken[0] == spoken[1] != spoken[2]


@pytest.fixture
def pointing(monkeypatch: pytest.MonkeyPatch) -> list[list[Mark]]:
    """Puts marks into the answers of the tiny model, which names none: a list of marks for each image of a sample."""
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    marks = [
        [Mark(box=(10.0, 5.04, 40.0, 30.0)), Mark(mask=mask), Mark(point=(70.0, 50.0))],
        [Mark(box=(0.0, 0.0, 20.0, 20.0), image=1)],
    ]
    real = generation.generate

    def generate(bundle: Any, samples: Sequence[Any], **options: Any) -> list[Answer]:
        spoken = real(bundle, samples, **options)
        return [
            replace(answer, marks=tuple(mark for group in marks[: len(sample.images)] for mark in group))
            for answer, sample in zip(spoken, samples, strict=True)
        ]

    monkeypatch.setattr(generation, "generate", generate)
    return marks


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


def test_a_batch_has_its_places_in_its_rows_and_its_drawings_in_a_folder(
    talking_adapter: Path, pictures: Path, tmp_path: Path, pointing: Any
) -> None:
    out, drawn = tmp_path / "out.jsonl", tmp_path / "drawn"
    questions = [{"image": "0.png", "question": "Where?", "boxes": [[1, 2, 3, 4]]}, {"question": "How many?"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in questions))
    batch = ["--adapter", str(talking_adapter), "--batch", str(file), "--image-folder", str(pictures), *FEW]
    assert main([*batch, "--out", str(out), "--draw", str(drawn)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["boxes"] == [[10.0, 5.0, 40.0, 30.0], [20.0, 10.0, 50.0, 30.0]]
    assert rows[0]["masks"][0]["size"] == [60, 80]
    assert rows[0]["reference_boxes"] == [[1, 2, 3, 4]], "what the row said itself is no prediction"
    assert rows[0]["drawings"] == os.listdir(drawn) == ["000001.png"]
    assert set(rows[1]) == {"question", "prediction"}
    with pytest.raises(ConfigError, match="not an empty folder"):
        main([*batch, "--out", str(tmp_path / "other.jsonl"), "--draw", str(drawn)])


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
