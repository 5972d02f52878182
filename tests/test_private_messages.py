"""Tests of the messages of private runs: each has the place and the reason, and no value of the data."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
from medical_files import write_png

from mllm.dataset.loading.collator import EncodedDataset
from mllm.dataset.readers import read_images
from mllm.errors import ConfigError, DataError, TrainingError
from mllm.files import refuse_nonempty
from mllm.private_messages import PublicText, call_privately, is_private, worker_setup
from mllm.structures import Sample, Turn

NAME = "Jane Doe"


def test_pillow_logs_no_texts_of_headers_if_a_private_run_imports_the_readers() -> None:
    program = (
        "import importlib, logging; from mllm.private_messages import call_privately; level = lambda: "
        "(importlib.import_module('mllm.dataset.readers.image'), logging.getLogger('PIL').level)[1]; "
        "print(call_privately(level), level())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(logging.CRITICAL + 1), str(logging.INFO)]


class Rows:
    """Dataset of one sample."""

    def __len__(self) -> int:
        return 1

    def sample(self, index: int, epoch: int = 0) -> Sample:
        return Sample([Turn("user", NAME)], source=f"{NAME}.jsonl, line 7")


def raising(error: Exception):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError(NAME), r"it cannot be used \(ValueError in test_private_messages.py:\d+\)"),
        (DataError.at(NAME, "the answer is empty"), "the answer is empty"),
        (
            DataError(f"{NAME}: an answer"),
            "it cannot be used; .*`mllm show sample CONFIG --split train --index 0` shows",
        ),
        (ConfigError(f"{NAME}: a key"), "it cannot be used; the reason is left out"),
    ],
)
def test_an_error_of_the_encoder_names_split_row_and_reason(error, sentence):
    rows = EncodedDataset(Rows(), raising(error), "train")
    failure = call_privately(lambda: rows[0])
    assert NAME not in failure.message and failure.message.startswith("train, row 1: ")
    assert re.search(sentence, failure.message)
    assert NAME in rows[0].message, "a run without privacy keeps its messages"
    assert worker_setup() is None


@pytest.mark.parametrize("error", [KeyError(NAME), DataError(NAME), KeyboardInterrupt(), MemoryError()])
def test_an_exception_leaves_without_its_text_and_its_causes(error):
    def function():
        try:
            raise OSError(NAME)
        except OSError as cause:
            raise error from cause

    with pytest.raises((TrainingError, DataError, KeyboardInterrupt, MemoryError)) as raised:
        call_privately(function)
    assert NAME not in "".join(traceback.format_exception(raised.value))
    assert raised.value.__context__ is None and raised.value.__cause__ is None
    if isinstance(error, KeyError):
        assert str(raised.value).startswith("unexpected KeyError in test_private_messages.py:")
    assert not is_private()


def test_errors_of_the_config_and_a_full_disk_keep_their_texts():
    with pytest.raises(ConfigError, match="tests is not empty; choose another folder"):
        call_privately(lambda: refuse_nonempty(Path(__file__).parent))
    with pytest.raises(OSError, match="No space left on device"):
        call_privately(raising(OSError(28, "No space left on device", "exp/run")))


def test_errors_of_the_config_from_readers_and_from_other_code_have_no_value(tmp_path):
    path = write_png(tmp_path / f"{NAME}.png", np.zeros((9, 9), np.uint8))
    bad_page = r"='…' must be an index, a list of indices, or a name…"
    for function, text in ((lambda: read_images(path, page=NAME), bad_page), (raising(ConfigError(NAME)), "left out")):
        with pytest.raises(ConfigError, match=text) as raised:
            call_privately(function)
        assert NAME not in "".join(traceback.format_exception(raised.value))


def test_log_records_keep_literal_texts_and_public_arguments(caplog):
    caplog.set_level(logging.DEBUG)

    def function():
        logging.getLogger("mllm.dataset.readers").warning("%s has %d of 100 %%: %s", NAME, 3, PublicText("train"))
        logging.getLogger("mllm.run").info("%d rows", 3)
        logging.getLogger("anything.inside").warning(f"name {NAME}")
        logging.getLogger("pydicom").warning(NAME)
        logging.getLogger("torch.optim").warning("%s", "about tensors")
        try:
            raise ValueError(NAME)
        except ValueError:
            logging.getLogger("mllm.run").warning("failed", exc_info=True)

    call_privately(function)
    assert caplog.messages == [
        *("… has … of 100 %: train", "3 rows", "a message of anything is left out, because the run is private"),
        *("about tensors", "failed"),
    ]
    assert NAME not in caplog.text
    logging.getLogger("mllm.dataset.readers").warning("%s", NAME)
    logging.getLogger("pydicom").warning(NAME)
    assert caplog.messages[-2:] == [NAME, NAME]


def test_warnings_are_named_once_without_their_texts(caplog, recwarn):
    def function():
        warnings.simplefilter("always")
        for number in range(3):
            warnings.warn(f"{NAME} {number}", stacklevel=1)

    call_privately(function)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("UserWarning in test_private_messages.py:")
    assert NAME not in caplog.text
    # Files that earlier tests left open may be reported here, too.
    assert not [warning for warning in recwarn if NAME in str(warning.message)]


def test_workers_of_a_loader_rewrite_their_messages_too():
    assert call_privately(worker_setup) is not None
