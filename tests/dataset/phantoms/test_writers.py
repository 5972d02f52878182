"""Written MetaImages match a minimal reader; other writers are tested in tests/support."""

import zlib

import numpy as np
import pytest

from mllm.dataset.phantoms.writers import write_mhd


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "<f4"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_metaimage_contains_its_pixels(tmp_path, dtype, compressed):
    pixels = np.arange(60).reshape(3, 4, 5).astype(dtype)
    path = write_mhd(tmp_path / "a.mhd", pixels, (0.5, 0.25, 1), compressed)
    header = dict(line.split(" = ") for line in path.read_text().splitlines())
    assert header["DimSize"] == "5 4 3"
    assert header["ElementSpacing"] == "0.5 0.25 1.0"
    data = (tmp_path / header["ElementDataFile"]).read_bytes()
    data = zlib.decompress(data) if compressed else data
    kinds = {"MET_UCHAR": "u1", "MET_SHORT": "<i2", "MET_USHORT": "<u2", "MET_FLOAT": "<f4"}
    read = np.frombuffer(data, kinds[header["ElementType"]]).reshape(3, 4, 5)
    assert np.array_equal(read, pixels)
