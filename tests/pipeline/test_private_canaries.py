"""Private runs over rows, headers and paths that hold a unique text, which must not leave the data."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medical_files import write_dicom, write_png

from mllm.export.hub import prepare_upload
from mllm.pipeline.command import run_command
from mllm.pipeline.data import main as check_data
from mllm.pipeline.evaluate_model import main as evaluate
from mllm.pipeline.finetune import main
from mllm.pipeline.plan import main as plan
from mllm.pipeline.show import main as show
from mllm.registry import DATASETS, METRICS

CANARY = "Zq7Kanari"
"""Part of every name, id, question, answer, folder and file name, and header text of the data."""
CHECKOUT = Path(__file__).resolve().parents[2]
IMAGE = f"{CANARY}-image.png"
DATA = Path(f"data-{CANARY}-dir")
CODE = '''
"""Datasets whose classes raise errors with values of their rows."""
import logging, warnings
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS, METRICS

@DATASETS.register_module()
class Failing(VQADataset):
    """Questions whose rows name the failure of the class."""
    def parse(self, row):
        kind, text = row.get("fail"), f"{row['patient']} {row['answer']}"
        if kind == "log":
            logging.getLogger("readers").warning("row of %s", text)
            warnings.warn(f"odd value {text}")
        errors = dict(key=KeyError(text), value=ValueError(text), data=DataError(text), config=ConfigError(text))
        if kind in errors:
            raise errors[kind]
        return super().parse(row)

@METRICS.register_module()
def broken(predictions, references):
    """Metric that cannot read an answer."""
    return {"figure": float(references[0].text)}
'''
CONFIG = """
_base_ = ["{checkout}/config/_base_/models/medgemma.py", "{checkout}/config/_base_/datasets/dummy.py",
          "{checkout}/config/_base_/runtime/private.py"]
custom_imports = dict(imports=["failing"])
model_args = dict(model_name_or_path={model!r}, lora_r=4, lora_target="all", image_size=112, image_token_len=16,
                  max_length=256, lora_dropout=0.0)
data_args = dict(
    train=dict(_delete_=True, type="Failing", data_path="{data}/train.jsonl"),
    validation=dict(_delete_=True, type="Failing", data_path="{data}/validation.jsonl"),
    test=dict(_delete_=True, type="Failing", data_path="{data}/test.jsonl"),
    gen_kwargs=dict(max_new_tokens=2), compute_metric=["accuracy"],
)
training_args = dict(max_steps=2, per_device_train_batch_size=3, warmup_steps=0, save_steps=1, eval_steps=2,
                     dataloader_num_workers=0)
privacy_args = dict(unit="patient", physical_batch_size=2, test_noise_seed=0, target_epsilon=None, noise_multiplier=2.0,
                    accountant="rdp")
{more}
"""


def row_of(name: str, image: str = "", **fields: Any) -> dict[str, Any]:
    """Return a row with the canary in every text."""
    row = {
        "image": image or IMAGE,
        "question": f"Does {CANARY} {name} have a nodule?",
        "answer": f"{CANARY} yes",
        "patient": f"{CANARY} {name}",
        f"meta {CANARY}": f"{CANARY} note",
        "fail": None,
    }
    return {**row, **fields}


def write_rows(split: str, *more: dict[str, Any] | str | bytes, good: int = 2) -> None:
    """Write a table of a split: good rows with an image each, and more rows."""
    rows: list[Any] = [row_of(f"{split}{number}") for number in range(good)]
    lines = [json.dumps(row) if isinstance(row, dict) else row for row in [*rows, *more]]
    content = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    (DATA / f"{split}.jsonl").write_bytes(content)


@pytest.fixture
def run(folder, tiny_medgemma, capfd, caplog):
    """A function that runs a command on a private config, and returns its exit code and all texts that it wrote."""
    caplog.set_level(logging.DEBUG)
    DATA.mkdir()
    write_png(DATA / IMAGE, (np.arange(900) % 256).astype(np.uint8).reshape(30, 30))
    Path("failing.py").write_text(CODE)
    for split in ("train", "validation", "test"):
        write_rows(split)

    def command(*arguments: str, more: str = "", main=main) -> tuple[int, str]:
        text = CONFIG.format(checkout=CHECKOUT, data=DATA, model=str(tiny_medgemma), more=more)
        Path("run.py").write_text(text)
        caplog.clear()
        code = run_command(main, ["run.py", *arguments, "--debug"])
        output = capfd.readouterr()
        return code, output.out + output.err + caplog.text

    yield command
    if sys.modules.pop("failing", None) is not None:
        del DATASETS.module_dict["Failing"], METRICS.module_dict["broken"]


def assert_silent(text: str) -> None:
    assert not [line for line in text.splitlines() if CANARY.lower() in line.lower()]


def files_with_canary(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and CANARY.lower().encode() in path.read_bytes().lower()
    }


def odd_dicom() -> str:
    """Write a DICOM file with names in its header, a window of width 0, and constant pixels."""
    name = f"{CANARY}-odd.dcm"
    tags = dict(
        BurnedInAnnotation="YES",
        PatientName=f"{CANARY}^A",
        PatientID=CANARY,
        StudyDescription=CANARY,
        InstitutionName=CANARY,
    )
    write_dicom(DATA / name, np.full((32, 32), 7, np.uint16), WindowCenter=5, WindowWidth=0, **tags)
    return name


def unusable_rows() -> list[dict[str, Any] | str | bytes]:
    """Return rows that cannot be used, each for a different reason."""
    (DATA / f"{CANARY}-broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + CANARY.encode() * 9)
    (DATA / f"{CANARY}-broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + CANARY.encode() * 30)
    for suffix in ("nii", "avi", "mp4", "tif"):
        (DATA / f"{CANARY}-broken.{suffix}").write_bytes(CANARY.encode() * 200)
    return [
        row_of("missing", image=f"{CANARY}-missing.png"),
        row_of("empty", answer=" "),
        row_of("list", answer=[f"{CANARY} a", f"{CANARY} b"]),
        row_of("surrogate", answer=f"{CANARY} \ud800"),
        row_of("patient", patient={CANARY: 1}),
        row_of("brokenpng", image=f"{CANARY}-broken.png"),
        row_of("brokendcm", image=f"{CANARY}-broken.dcm"),
        *(row_of(f"broken{suffix}", image=f"{CANARY}-broken.{suffix}") for suffix in ("nii", "avi", "mp4", "tif")),
        row_of("windows", image=f"C:\\{CANARY}\\a.png"),
        row_of("suffix", image="failing.txt"),
        row_of("option", image={"path": IMAGE, "page": CANARY}),
        *(row_of(kind, fail=kind) for kind in ("key", "value", "data", "config")),
        {f"unknown {CANARY}": 1},
        f'{{"question": "{CANARY}", ',
        f'["{CANARY}"]',
        b'{"question": "\xff' + CANARY.encode() + b'"}',
    ]


def test_a_private_run_with_unusable_rows_writes_no_value_of_them(run):
    bad = unusable_rows()
    control = row_of("control", question=f"{CANARY} <end_of_turn>?")
    odd = row_of("odd", image=odd_dicom(), fail="log")
    write_rows("train", *bad, control, odd, good=3)
    write_rows("validation", row_of("missing v", image=f"{CANARY}-v.png"))
    write_rows("test", row_of("missing t", image=f"{CANARY}-t.png"), {**control, "patient": f"{CANARY} t"})
    more = 'data_args.update(on_error="skip")\nprivacy_args.update(unit="sample")'
    code, text = run(more=more)
    assert code == 0, text
    assert_silent(text)
    folder = Path("exp/run/latest").resolve()
    assert files_with_canary(folder) == {"config.py", "predictions.jsonl"}
    (events,) = (folder / "tensorboard").rglob("events*")
    assert b"exp/run" not in events.read_bytes() and b"tiny" not in events.read_bytes(), "a path is in the tracker"
    skipped = (folder / "skipped_rows.txt").read_text()
    for number, row in enumerate(bad, start=4):
        # Damaged images are found when their rows are drawn.
        assert f"train, row {number}: " in skipped or "broken" in str(row), row
    assert "test, row 3: " in skipped and "test, row 4: " in skipped
    assert "field 'answer' is empty" in skipped
    assert f"train, row {5 + len(bad)}: its file is unusual (window)" in text
    assert "a message of readers is left out" in text and "UserWarning in failing.py:" in text
    assert json.loads((folder / "data_summary.json").read_text())["test"]["skipped"] == 2
    upload = prepare_upload(folder / "adapter", "google/medgemma-4b-it")
    for name, source in upload.files.items():
        content = source if isinstance(source, bytes) else source.read_bytes()
        assert CANARY.lower().encode() not in content.lower(), name

    (DATA / "other").mkdir()
    (DATA / f"other/{CANARY}.jsonl").write_bytes((DATA / "test.jsonl").read_bytes())
    moved = f'\ndata_args["test"].update(data_path="{DATA}/other/{CANARY}.jsonl", image_folder="{DATA}")'
    code, text = run("--resume", more=more + moved + '\ndata_args.update(compute_metric=["broken"])')
    assert code == 2 and "unexpected ValueError in failing.py:" in text
    assert "data_args.test.data_path has changed" in text
    assert_silent(text)
    write_rows("train", *bad, good=4)
    code, text = run("--resume", more=more)
    assert code == 2 and "samples" in text
    assert_silent(text)

    code, text = run("--adapter", str(folder / "adapter"), "--out", "answers", main=evaluate, more=more)
    assert code == 0, text
    assert "skipped test, row 3: " in text
    assert_silent(text)
    assert files_with_canary(Path("answers")) == {"predictions.jsonl"}


def leak() -> None:
    write_rows("test", row_of("test9", patient=f"{CANARY} train1"))


def two_forms() -> None:
    write_rows("train", row_of("train1", patient=f"{CANARY.upper()} TRAIN1"))


def without_patient() -> None:
    write_rows("train", row_of("train9", patient=None))


def latin() -> None:
    (DATA / "test.jsonl").write_bytes(b"\xff\xfe" + CANARY.encode("utf-16-le")[:-1])


def no_object() -> None:
    (DATA / "validation.jsonl").write_text(CANARY)


FAILURES = {
    "patient in two splits": (leak, "in both train and test, for example train, row 2 and test, row 3"),
    "two forms of a patient": (two_forms, "the patients of train, row 2 and train, row 3 differ only in case"),
    "row without patient": (without_patient, "train, row 3 has no patient"),
    "missing table": (lambda: (DATA / "train.jsonl").unlink(), "data_args.train: "),
    "empty table": (lambda: (DATA / "test.jsonl").write_text(""), "data_args.test: "),
    "text in another encoding": (latin, "data_args.test: "),
    "no table": (no_object, "validation, row 1"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_refused_table_is_named_by_split_and_row(run, kind):
    damage, sentence = FAILURES[kind]
    damage()
    code, text = run()
    assert code == 2, text
    assert sentence in text
    assert_silent(text)
    if damage is without_patient:
        code, text = run("--privacy", main=plan)
        assert code == 2 and sentence in text
        assert_silent(text)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_page_about_private_data_has_no_value_of_a_row(run, workers):
    write_rows("train", *unusable_rows(), row_of("odd", image=odd_dicom(), fail="log"))
    code, text = run("--workers", workers, main=check_data)
    assert code == 1 and "error: " in text
    assert_silent(text)
    assert not files_with_canary(Path("exp"))
    page = Path("exp/run/data/data.html").read_text()
    assert "train, row 3" in page
    assert re.search(
        r"Images with text in their pixels.*train: train, row 25.*Files with warnings.*row 25: window", page, re.S
    )


def test_show_sample_shows_the_row_that_a_message_names(run):
    write_rows("test", row_of("data", fail="data"))
    code, text = run()
    assert code == 2 and "`mllm show sample CONFIG --split test --index 2`" in text
    code, text = run("--split", "test", "--index", "2", main=lambda argv: show(["sample", *argv]))
    assert code == 2 and f"test.jsonl, line 3: {CANARY} data {CANARY} yes" in text


@pytest.mark.parametrize("position", range(22))
def test_every_unusable_row_is_named_by_split_and_row(run, position):
    write_rows("test", unusable_rows()[position])
    code, text = run()
    assert code == 2, text
    assert re.search(r"^test, row 3: ", text, re.MULTILINE)
    assert_silent(text)
