"""Zip archives of DICOM files: damage, names, and a full disk end in one sentence."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest

from mllm.dataset.folder_files import files_below
from mllm.dataset.readers.archive import unpack, unpacked_size
from mllm.dataset.readers.series import find_files
from mllm.errors import DataError

DICOM = bytes(128) + b"DICM" + bytes(range(200))


def zip_of(names: Sequence[str], content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name in names:
            archive.writestr(name, content)
    return packed.getvalue()


def damaged() -> dict[str, bytes]:
    """Return damaged archives by the error that Python's reader of archives raises."""
    stored, lzma = zip_of(["a"], DICOM), bytearray(zip_of(["a"], DICOM, zipfile.ZIP_LZMA))
    directory, end = stored.index(b"PK\x01\x02"), stored.index(b"PK\x05\x06")
    lzma[35] = 0xFF  # first byte of the properties, after the header of 30 bytes, the name and 4 bytes
    name, before, empty, cut = bytearray(stored), bytearray(stored), bytearray(stored), stored[:-40]
    name[directory + 9], name[directory + 46] = 0x08, 0xFF  # said to be UTF-8
    before[end + 16 : end + 20] = (directory + 255).to_bytes(4, "little")  # the file begins before the archive
    empty[directory + 46] = 0  # the name ends before its first character
    faults = {
        "LZMAError": lzma,
        "UnicodeDecodeError": name,
        "ValueError": before,
        "IndexError": empty,
        "BadZipFile": cut,
    }
    return {fault: bytes(content) for fault, content in faults.items()}


@pytest.mark.parametrize("fault", damaged())
def test_damaged_archives_are_refused_in_one_sentence(fault: str, tmp_path: Path) -> None:
    content = damaged()[fault]
    with pytest.raises(DataError, match=rf"it is damaged \({fault}\)"):
        unpack(BytesIO(content), tmp_path, 10**6)


def test_names_of_any_length_and_script_are_written(tmp_path: Path) -> None:
    names = ["ä" * 200 + "/" + "腫" * 200, "b/" + "x" * 250 + ".dcm", "c/a:b\\c", "d/a:b\\c"]
    archive = zip_of(names, DICOM)
    paths = unpack(BytesIO(archive), tmp_path, len(archive))
    assert [path.read_bytes() for path in paths] == [DICOM] * 4
    assert all(path.parent == tmp_path and path.name.isascii() and len(path.name) < 60 for path in paths)
    assert paths[1].suffix == ".dcm"
    assert unpacked_size(BytesIO(archive), 10**9) == 4 * len(DICOM) and unpacked_size(BytesIO(archive), 99) == 99


def test_archives_series_and_folders_have_one_rule_for_hidden_files(tmp_path: Path) -> None:
    names = ["a.dcm", "b/c.dcm", "b/._c.dcm", ".hidden/d.dcm", "__MACOSX/b/e.dcm", "b/.trash/f.dcm", "../g.dcm"]
    archive = zip_of([*names, "DICOMDIR", "b/dicomdir"], DICOM)
    (tmp_path / "unpacked").mkdir()
    paths = unpack(BytesIO(archive), tmp_path / "unpacked", len(archive))
    assert [path.name.partition("_")[2] for path in paths] == ["a.dcm", "c.dcm", "g.dcm"]
    study = tmp_path / "study"
    for name in [*names[:-1], "DICOMDIR", "b/dicomdir"]:
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        (study / name).write_bytes(DICOM)
    assert [name for name in files_below(study) if "dicomdir" not in name.lower()] == ["a.dcm", "b/c.dcm"]
    assert [path.name for path in find_files(study)] == ["a.dcm"]
    assert [path.name for path in find_files(study / "b")] == ["c.dcm"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "0_a").symlink_to("/dev/full")
    with pytest.raises(
        DataError, match=r"^the files of the archive cannot be written: No space left on device"
    ) as caught:
        unpack(BytesIO(zip_of(["a"], DICOM)), tmp_path, 10**6)
    assert str(tmp_path) not in str(caught.value)
