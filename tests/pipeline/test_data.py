"""Tests of `mllm data`: findings about rows and images that were written by hand, and the page about them."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm.dataset.builder import build_datasets
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.models.builder.builder import load_encoder
from mllm.pipeline.data import main
from mllm.registry import DATASETS
from mllm.run.prepare import prepare_args
from mllm.tiny.checkpoints import write_tiny

CONFIG = """
model_args = dict(
    type="medgemma",
    model_name_or_path="ckpt/tiny-medgemma",
    lora_r=2,
    image_size=56,
    image_token_len=16,
    max_length={length},
)
objectives = dict(next_token=dict(type="NextToken"))
data_args = dict(
    train=dict(type="VQADataset", data_path="train.jsonl"),
    test=dict(type="VQADataset", data_path="test.jsonl"),
)
"""
PRIVATE = 'privacy_args = dict(target_epsilon=8.0, target_delta=1e-4, unit="sample")\n'


def picture(name: str, seed: int, size: tuple[int, int] = (48, 40)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(name)


def rows(path: str, *rows: tuple[str, str, str]) -> None:
    """Write rows of image, answer and patient."""
    keys = ("image", "answer", "patient")
    lines = [json.dumps({**dict(zip(keys, row, strict=True)), "question": "Is it benign?"}) for row in rows]
    Path(path).write_text("\n".join(lines) + "\n")


@pytest.fixture
def data(folder, capsys):
    """Write data with one fault of each kind; return a function that runs the command, and its page without tags."""
    for number in range(4):
        picture(f"{number}.png", number)
    picture("copy.png", 1)
    Path("._copy.png").write_bytes(b"metadata of macOS")
    picture("long.png", 9, (300, 40))
    picture("small.png", 10, (20, 40))
    Image.new("RGB", (48, 40), (7, 7, 7)).save("flat.png")
    Path("broken.png").write_bytes(Path("0.png").read_bytes()[:900])
    rows(
        "train.jsonl",
        *(
            ("0.png", "benign", "p0"),
            ("1.png", "benign", "p1"),
            ("2.png", "bening", "p2"),
            ("flat.png", "benign", "p3"),
        ),
        *(("long.png", "malignant", "p4"), ("small.png", "malignant", "p5"), ("broken.png", "benign", "p6")),
    )
    rows("test.jsonl", ("copy.png", "benign", "p8"), ("3.png", "malignant", "p2"))

    def run(length: int = 256, extra: str = "", workers: int = 0) -> tuple[int, str, str]:
        Path("run.py").write_text(CONFIG.format(length=length) + extra)
        code = main(["run.py", "--workers", str(workers)])
        page = html.unescape(Path("exp/run/data/data.html").read_text())
        return (
            code,
            capsys.readouterr().out,
            " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S).split()),
        )

    return run


def test_each_fault_is_found_with_its_row(data):
    code, out, text = data()
    assert code == 1
    shown = out.splitlines()
    assert shown[1].startswith("  train: train.jsonl, line 7: ") and "broken.png" in shown[1]
    assert [line for line in shown if not line.startswith("  ")][:3] == [
        "error: Rows that cannot be used: 1",
        "error: Images with equal pixels in several splits: 1",
        "error: Patients in several splits: 1",
    ]
    for row in (
        "Rows that cannot be used: 1 Training stops at such a row",
        "train: train.jsonl, line 7: ",
        "broken.png",
        "Images with equal pixels in several splits: 1",
        "train: train.jsonl, line 2 = test: test.jsonl, line 1",
        "with PatientSplit. train: train.jsonl, line 3 and test: test.jsonl, line 2",
        "Images with equal pixels of several patients: 1",
        "Nearly constant images: 1",
        "train: train.jsonl, line 4 (48 x 40 pixels, mean 7 of 255)",
        "Images with a side below 32 pixels: 1",
        "train: train.jsonl, line 6 (20 x 40 pixels",
        "Images with an aspect ratio above 6: 1",
        "train: train.jsonl, line 3: 'bening', elsewhere 'benign'",
    ):
        assert row in text, row
    assert "Images without a row" not in text
    assert "train 7 1 6 0 6 6 0 0" in text and "benign 3" in text and "48 x 40 4" in text


def test_lengths_are_those_of_the_encoder_and_cuts_are_counted(data):
    _, _, text = data()
    config, _ = prepare_args("run.py")
    encoder, splits = load_encoder(config.model_args), build_datasets(config.data_args)
    lengths = sorted(len(encoder.encode(splits["train"].sample(index))) for index in range(6))
    assert f"{lengths[0]} to {lengths[-1]}, median {int(np.median(lengths))}" in text and "which truncates" not in text
    _, out, text = data(length=lengths[0] - 1)
    assert "notice: Samples truncated to max_length: 8" in out and "which truncates 6 samples" in text


def test_a_second_call_decodes_only_what_changed_and_a_part_of_a_line_is_forgotten(data, monkeypatch):
    _, _, first = data()
    store = Path("exp/run/data/rows.jsonl")
    lines = store.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 9
    store.write_text("".join(lines[:5]) + lines[5][:30])  # as after a killed call
    picture("0.png", 77)
    read = []
    from mllm.report.data import facts

    original = facts.image_facts
    monkeypatch.setattr(facts, "image_facts", lambda image: read.append(image) or original(image))
    _, _, second = data()
    # Rows 5 to 7 of train and both rows of test are missing, and row 1 has changed. The broken row is read again.
    assert len(read) == 1 + 2 + 2 and second.replace("0.png", "") == first.replace("0.png", "")
    data()
    assert len(read) == 5
    assert [json.loads(line) for line in store.read_text().splitlines() if line.endswith("}")]


def test_processes_give_the_same_page(data):
    assert data()[2] == data(workers=2)[2]


def test_the_page_of_a_private_config_has_no_value_of_a_row(data):
    code, out, text = data(extra=PRIVATE)
    page = Path("exp/run/data/data.html").read_text()
    assert code == 1 and "<img" not in page and not Path("exp/run/data/rows.jsonl").exists()
    for value in ("benign", "malignant", "jsonl", ".png", "p2"):
        assert value not in page and value not in out, value
    assert "train, row 7" in text and "train: train, row 3 and test: test, row 2" in text


def test_an_absent_checkpoint_leaves_lengths_out(data):
    rows("train.jsonl", ("0.png", "benign", "p0"))
    rows("test.jsonl", ("3.png", "malignant", "p9"))
    code, out, text = data(extra='model_args["model_name_or_path"] = "ckpt/absent"\n')
    assert code == 0 and "Lengths are unknown" in text and "Tokens of a sample" not in text
    assert out.endswith("2 rows were read; the page is exp/run/data/data.html\n")


def test_lengths_are_known_once_the_checkpoint_is_there(data):
    rows("train.jsonl", ("0.png", "benign", "p0"))
    rows("test.jsonl", ("3.png", "malignant", "p9"))
    other = 'model_args["model_name_or_path"] = "ckpt/other"\n'
    assert "Lengths are unknown" in data(extra=other)[2]
    write_tiny("medgemma", Path("ckpt/other"))
    assert "Lengths are unknown" not in (text := data(extra=other)[2]) and "Tokens of a sample" in text


def test_an_unexpected_error_is_that_of_its_row(data, monkeypatch):
    class FaultyDataset(VQADataset):
        def plain(self, index):
            return replace(super().plain(index), modality="CT") if 1 // index else None

    monkeypatch.setitem(DATASETS.module_dict, "FaultyDataset", FaultyDataset)
    rows("train.jsonl", ("0.png", "benign", "p0"), ("1.png", "benign", "p1"))
    rows("test.jsonl", ("3.png", "malignant", "p9"))
    overridden = 'data_args["train"]["type"] = "FaultyDataset"\n'
    code, _, text = data(extra=overridden)
    assert code == 1 and "train: train.jsonl, line 1: it cannot be used (ZeroDivisionError" in text and "CT 1" in text


def test_real_blood_smears_have_no_finding_and_their_boxes_are_drawn(folder, shared_data, capsys):
    split = 'dict(type="DetectionDataset", data_path="{}", split="{}", labels=["WBC"], empty_boxes="drop")'
    bccd = [split.format(shared_data / "bccd", name) for name in ("val", "test")]
    text = CONFIG.format(length=512).replace('dict(type="VQADataset", data_path="train.jsonl")', bccd[0])
    Path("run.py").write_text(text.replace('dict(type="VQADataset", data_path="test.jsonl")', bccd[1]))
    assert main(["run.py", "--workers", "2"]) == 0
    out = "notice: Images without a row: 205\n159 rows were read; the page is exp/run/data/data.html\n"
    assert capsys.readouterr().out == out
    page = Path("exp/run/data/data.html").read_text()
    assert page.count("<img") == 24 and "boxes or masks drawn" in page and len(page) < 2_000_000
    for answer in ("&lt;1 box&gt;", "&lt;2 boxes&gt;", "none"):
        assert f"<td>{answer}</td>" in page
    assert "boxes: Platelets " in page and "BloodImage_00007.xml</div>" in page
