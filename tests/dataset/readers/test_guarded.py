"""Tests of the guarded process: no file ends this process, and no decoding takes forever."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medical_files import pydicom_file, read_gray, write_nifti
from PIL import Image

from mllm.dataset.phantoms.writers import write_mhd
from mllm.dataset.readers import guarded, notices, read_images
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


def test_the_limit_of_time_of_a_volume_grows_with_its_size():
    """A slow disk needs longer than the limit of an image for a large volume, whose reading has no parts."""
    process = GuardedProcess(seconds=60.0)
    try:
        process.call("itertools:repeat", "x", 1)  # starts the process
        process._seconds = 0.2
        with pytest.raises(GuardedError, match="TypeError"):  # the result of sleep cannot be iterated
            process.call("time:sleep", 0.5, size=20 * guarded.BYTES_PER_SECOND)
        with pytest.raises(GuardedError, match="decoding takes longer than"):
            process.call("time:sleep", 0.5)
    finally:
        process.stop()


@pytest.mark.parametrize("kind", ["nifti", "metaimage"])
def test_readers_of_volumes_pass_their_size(kind, tmp_path, monkeypatch):
    voxels = np.zeros((4, 5, 6), np.int16)
    nifti = kind == "nifti"
    path = write_nifti(tmp_path / "a.nii.gz", voxels) if nifti else write_mhd(tmp_path / "a.mhd", voxels, (1, 1, 1))
    module = f"mllm.dataset.readers.{'nifti' if nifti else 'itk_volumes'}"
    monkeypatch.setattr(f"{module}.CHEAP_BYTES", 0)
    sizes: list[int] = []
    monkeypatch.setattr(f"{module}.call_guarded", lambda *_, size: sizes.append(size) or [])
    read_images(path)
    assert sizes == [voxels.nbytes]


def parts_of_a_long_video(seconds: float, count: int) -> Iterator[str]:
    """Yield one result after `count` parts of the work, each of which takes `seconds`."""
    for _ in range(count):
        time.sleep(seconds)
        guarded.report_progress()
    yield "x"


def test_the_limit_of_time_is_that_of_a_part_of_the_work():
    process = GuardedProcess(seconds=60.0)
    try:
        process.call(f"{__name__}:parts_of_a_long_video", 0.0, 1)  # imports this module
        process._seconds = 1.0
        assert process.call(f"{__name__}:parts_of_a_long_video", 0.2, 6) == ["x"]
    finally:
        process.stop()


def test_progress_is_reported_at_intervals(monkeypatch):
    caller, process = Pipe()
    monkeypatch.setattr(guarded, "_to_caller", process)
    monkeypatch.setattr(guarded, "_PROGRESS_SECONDS", 3600.0)
    monkeypatch.setattr(guarded, "_last_progress", time.monotonic() - 3601)
    for _ in range(1000):
        guarded.report_progress()
    assert caller.recv() == ("progress", None) and not caller.poll()


def test_a_forked_process_has_another_guarded_process():
    expected = read_gray(pydicom_file("MR_small_jp2klossless.dcm"))
    child = os.fork()
    if child == 0:
        is_equal = np.array_equal(read_gray(pydicom_file("MR_small_jp2klossless.dcm")), expected)
        guarded._processes[os.getpid()].stop()
        os._exit(0 if is_equal and len(guarded._processes) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(read_gray(pydicom_file("MR_small_jp2klossless.dcm")), expected)


def write_many_scans(path: Path, scans: int) -> None:
    """Write a progressive JPEG whose last scan is repeated."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    Image.fromarray(pixels).resize((1024, 1024)).save(path, progressive=True)
    data = path.read_bytes()
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data[:last] + data[last:-2] * scans + data[-2:])


def write_nifti_of_zeros(path: Path, shape: tuple[int, int, int], megabytes: int) -> None:
    """Write a compressed volume of bytes that are 0, about a thousandth of its size."""
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).header
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + gzip.compress(bytes(1 << 20)) * megabytes)


@pytest.mark.parametrize("fault", ["time", "memory", "results"])
def test_costly_files_are_refused_with_the_limit_that_they_exceed(tmp_path, monkeypatch, fast_limit, fault):
    if fault == "time":
        path, message = tmp_path / "a.jpg", "decoding takes longer than 0.5 s"
        monkeypatch.setattr(guarded, "SECONDS", 0.5)
        write_many_scans(path, 500)
    elif fault == "memory":
        path, message = tmp_path / "a.nii.gz", "decoding takes more than 1 GiB of memory"
        monkeypatch.setattr(guarded, "_BYTES", 1 << 30)
        write_nifti_of_zeros(path, (1024, 1024, 1023), 1100)
    else:
        path, message = tmp_path / "a.tif", "its selected images have more than 0 GiB: select fewer"
        monkeypatch.setattr(guarded, "_RESULT_BYTES", 10_000)
        frames = [Image.new("RGB", (50, 50))] * 4
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert len(read_images(path, page=[0])) == 1
    with pytest.raises(DataError, match=rf"{path.name} cannot be read: {message}$"):
        read_images(path, **({"page": "all"} if fault == "results" else {}))


def test_a_compressed_volume_that_is_too_short_for_its_header_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_nifti_of_zeros(tmp_path / "a.nii.gz", (1200, 1200, 1200), 1)
    monkeypatch.setattr(guarded, "_processes", None)
    with pytest.raises(DataError, match=r"a.nii.gz is truncated or damaged: its header describes 1,728,000,000 bytes"):
        read_images(tmp_path / "a.nii.gz")


def test_warnings_of_the_guarded_process_are_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(notices, "_noticed", set())
    values = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    values[0, 0] = 1e7
    Image.fromarray(values).save(tmp_path / "a.tif", compression="tiff_lzw")
    read_images(tmp_path / "a.tif")
    assert [record.getMessage().split()[1:3] for record in caplog.records] == [["has", "values"]]


def test_formats_that_pillow_gives_to_other_programs_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    with pytest.raises(DataError, match=r"a.png is not an image: its content does not match its suffix"):
        read_images((tmp_path / "a.eps").rename(tmp_path / "a.png"))


def test_a_relative_path_is_found_after_a_change_of_the_directory(tmp_path, monkeypatch):
    source = pydicom_file("MR_small_jp2klossless.dcm")
    expected = read_gray(source)  # starts the process in the former folder
    (tmp_path / "scan.dcm").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_gray("scan.dcm"), expected)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared folder of cases is not beside this checkout")
@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*")))
def test_files_that_ended_or_stopped_the_process_are_refused(fast_limit, name):
    with pytest.raises(DataError, match=name):
        read_images(CASES / name)
