"""Tests of the guarded process: no file ends this process, and no decoding takes forever."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from medical_files import pydicom_file, read_gray

from mllm.dataset.readers import guarded, read_images
from mllm.dataset.readers.guarded import GuardedError, GuardedProcess
from mllm.errors import DataError

CASES = Path(__file__).resolve().parents[3] / ".." / "shared" / "cases" / "mutated"


@pytest.fixture
def fast_limit(monkeypatch):
    monkeypatch.setattr(guarded, "SECONDS", 3.0)
    monkeypatch.setattr(guarded, "_processes", {})
    yield
    for process in guarded._processes.values():
        process.stop()


def test_a_process_that_aborts_or_never_answers_is_replaced():
    process = GuardedProcess(seconds=1.0)
    try:
        with pytest.raises(GuardedError, match="the decoder crashed"):
            process.call("os:abort")
        with pytest.raises(GuardedError, match="decoding takes longer than 1 s"):
            process.call("time:sleep", 30)
        assert process.call("itertools:repeat", "x", 3) == ["x", "x", "x"]
        with pytest.raises(GuardedError, match="TypeError"):
            process.call("itertools:repeat")
        assert process.call("itertools:repeat", "x", 1) == ["x"]
    finally:
        process.stop()


def test_a_forked_process_has_another_guarded_process():
    expected = read_gray(pydicom_file("MR_small_jp2klossless.dcm"))
    child = os.fork()
    if child == 0:
        is_equal = np.array_equal(read_gray(pydicom_file("MR_small_jp2klossless.dcm")), expected)
        guarded._processes[os.getpid()].stop()
        os._exit(0 if is_equal and len(guarded._processes) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(read_gray(pydicom_file("MR_small_jp2klossless.dcm")), expected)


def test_a_relative_path_is_found_after_a_change_of_the_directory(tmp_path, monkeypatch):
    source = pydicom_file("MR_small_jp2klossless.dcm")
    expected = read_gray(source)  # starts the process in the former directory
    (tmp_path / "scan.dcm").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_gray("scan.dcm"), expected)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared folder of cases is not beside this checkout")
@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*")))
def test_files_that_ended_or_stopped_the_process_are_refused(fast_limit, name):
    with pytest.raises(DataError, match=name):
        read_images(CASES / name)
