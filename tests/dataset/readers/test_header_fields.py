"""Texts in headers must not leave a file, and text in pixels is warned of."""

from __future__ import annotations

import ast
import inspect
import logging
import traceback
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from medical_files import pydicom_file, write_avi, write_dicom
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary, keyword_for_tag

from mllm.dataset.readers import dicom, dicom_frames, dicom_gray, dicom_slices, notices, read_images, series
from mllm.dataset.readers.header_fields import SERIES_TAGS, SHOWN, TAGS, shown
from mllm.errors import UserError

CANARY = "Zq7Kanari"
GRAY = np.arange(1600, dtype=np.uint16).reshape(40, 40)
TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")


def write_texts(path):
    """Write a DICOM file with a canary in every text element of the dictionary, private elements, and sequences."""
    write_dicom(path, GRAY, Modality="CT", WindowCenter=5, WindowWidth=0, RescaleSlope=0, RescaleIntercept=0)
    dataset = pydicom.dcmread(path)
    for tag, (vr, _, _, is_retired, _) in DicomDictionary.items():
        name = keyword_for_tag(tag)
        if vr in TEXTS and not is_retired and name and tag >> 16 not in (0, 2) and name not in dataset:
            setattr(dataset, name, CANARY)
    dataset.BurnedInAnnotation, dataset.VOILUTFunction = "YES", CANARY
    block = dataset.private_block(0x11, CANARY, create=True)
    block.add_new(1, "LO", CANARY)
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTExplanation = [3, 0, 16], CANARY
    item.add_new("LUTData", "US", [1, 1, 1])
    group = pydicom.Dataset()
    group.FrameComments, group.FrameVOILUTSequence = CANARY, [item]
    dataset.VOILUTSequence, dataset.PerFrameFunctionalGroupsSequence = [item], [group]
    dataset.save_as(path)
    return path


def write_other_formats(folder):
    """Write a file of every other format with a canary in all texts of its header."""
    image, info = Image.fromarray(GRAY.astype(np.uint8)), PngImagePlugin.PngInfo()
    info.add_text("Title", CANARY)
    image.save(folder / "a.png", pnginfo=info)
    exif = Image.Exif()
    exif[270], exif[315] = CANARY, CANARY
    image.save(folder / "a.jpg", exif=exif, comment=CANARY)
    image.save(folder / "a.tif", tiffinfo={270: CANARY, 305: CANARY})
    image.save(folder / "a.gif", comment=CANARY)
    volume = nibabel.Nifti1Image(GRAY[..., None].astype(np.int16), np.eye(4))
    for name in ("descrip", "aux_file", "intent_name"):
        volume.header[name] = CANARY
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", CANARY.encode()))
    nibabel.save(volume, folder / "a.nii")
    size = b"NDims = 2\nDimSize = 40 40\nElementType = MET_USHORT\n"
    comment = f"Comment = {CANARY}\nName = {CANARY}\n".encode()
    (folder / "a.mha").write_bytes(comment + size + b"ElementDataFile = LOCAL\n" + GRAY.tobytes())
    head = f"NRRD0004\ntype: ushort\ndimension: 2\nsizes: 40 40\nencoding: raw\nendian: little\ncontent: {CANARY}\n"
    (folder / "a.nrrd").write_bytes(f"{head}patient:={CANARY}\nsample units: {CANARY}\n\n".encode() + GRAY.tobytes())
    write_avi(folder / "a.avi", [GRAY.astype(np.uint8)])
    return [folder / f"a.{suffix}" for suffix in ("png", "jpg", "tif", "gif", "nii", "mha", "nrrd")]


def changes(data, rng):
    """Yield changed contents of a file: truncated, with other bytes, and with the canary in place of bytes."""
    yield data
    for end in (len(data) // 3, len(data) - 200):
        yield data[:end]
    for _ in range(6):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            if rng.random() < 0.5:
                changed[at] = rng.integers(256)
            else:
                changed[at : at + len(CANARY)] = CANARY.encode()
        yield bytes(changed)
    for term in (b"MONOCHROME2 ", b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.5.1.4.1.1.2\0", b"MET_USHORT", b"ushort"):
        if term in data:
            yield data.replace(term, CANARY.ljust(len(term))[: len(term)].encode(), 1)


def test_texts_of_headers_do_not_reach_messages_logs_or_images(tmp_path, caplog, recwarn):
    caplog.set_level(logging.DEBUG)
    rng = np.random.default_rng(0)
    refused = 0
    files = [write_texts(tmp_path / "a.dcm"), *write_other_formats(tmp_path)]
    caplog.clear()  # the records of the writers
    for file in files:
        assert CANARY.encode() in file.read_bytes()
        recwarn.clear()
        for contents in changes(file.read_bytes(), rng):
            file.write_bytes(contents)
            for source, options in ((file, {}), ([file], {}) if file.suffix == ".dcm" else (file, {"window": (9, 9)})):
                try:
                    assert CANARY not in str([image.info for image in read_images(source, **options)])
                except UserError as error:
                    refused += 1
                    assert CANARY not in "".join(traceback.format_exception(error)) + str(error.reason), file
    assert refused > 30
    assert (
        "has text in its pixels" in caplog.text
        and "RescaleSlope 0 and RescaleIntercept 0, which is impossible" in caplog.text
    )
    assert CANARY not in caplog.text
    assert not [warning for warning in recwarn if CANARY in str(warning.message)]


def test_only_listed_elements_are_read_and_shown(tmp_path):
    path = write_texts(tmp_path / "a.dcm")
    with dicom.damage_refused(path):
        header = dicom_frames.read_header(path)
    assert {element.keyword for element in header} <= {*TAGS, "SpecificCharacterSet"}
    assert set(SHOWN) <= {*TAGS, "TransferSyntaxUID"} and not set(SHOWN) & set(SERIES_TAGS)
    assert shown(header, "RescaleSlope") == "0" and shown(header, "SOPClassUID") == "CT Image Storage"
    header.SOPClassUID, header.PhotometricInterpretation = "1.2.3.4", CANARY
    assert shown(header, "SOPClassUID") == shown(header, "PhotometricInterpretation") == "unknown"
    for name in ("PatientName", "SeriesInstanceUID", "Modality", "VOILUTFunction"):
        with pytest.raises(KeyError):
            shown(header, name)


def test_messages_take_values_of_headers_from_the_list_only():
    for module in (dicom, dicom_frames, dicom_gray, dicom_slices, series):
        for text in ast.walk(ast.parse(inspect.getsource(module))):
            for part in ast.walk(text) if isinstance(text, ast.JoinedStr) else ():
                is_value = isinstance(part, (ast.Attribute, ast.Subscript)) and isinstance(part.value, ast.Name)
                assert not (is_value and part.value.id in ("header", "dataset", "frame")), (module, part.lineno)


@pytest.mark.parametrize(
    "tags, message",
    [
        ({"BurnedInAnnotation": "YES"}, "has text in its pixels (BurnedInAnnotation YES)"),
        ({"Modality": "US"}, "may have text in its pixels"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "may have text in its pixels"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "BurnedInAnnotation": "NO"}, ""),
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.1"}, ""),
    ],
)
def test_the_first_file_with_text_in_its_pixels_is_named(tmp_path, caplog, tags, message):
    for name in ("a.dcm", "b.dcm", "a.dcm"):
        read_images(write_dicom(tmp_path / name, GRAY, **tags))
    assert caplog.text.count("text in its pixels") == bool(message)
    assert (f"a.dcm {message}" if message else "") in caplog.text and "b.dcm" not in caplog.text


def test_the_kinds_of_warnings_of_a_row_are_collected_although_they_are_not_logged_again(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GRAY, BurnedInAnnotation="YES", WindowCenter=0, WindowWidth=0)
    for _ in range(2):
        with notices.collected() as kinds:
            read_images(path)
        assert kinds == {"text in the pixels", "window"}
    with notices.collected() as kinds:
        read_images(Path(pydicom_file("CT_small.dcm")))
    assert not kinds
