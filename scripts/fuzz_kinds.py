"""Kinds of input files for `fuzz.py`: intact examples, and the functions of `mllm` that read them."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from fuzz_datasets import Datasets
from PIL import Image

from mllm.config.reading import read_config
from mllm.dataset.phantoms.writers import write_avi, write_nifti
from mllm.dataset.readers import read_images
from mllm.dataset.readers.archive import unpack
from mllm.dataset.tables.records import Records
from mllm.errors import errors_of_row
from mllm.structures import Sample, Turn

DICOM_FILES = (
    *("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"),
    *("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_small_odd_jpeg.dcm", "image_dfl.dcm", "rtdose.dcm"),
    *("MR_small_bigendian.dcm", "SC_rgb_rle_2frame.dcm", "examples_overlay.dcm", "liver_1frame.dcm"),
)
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Kind:
    """One kind of input: files or folders, and the function that reads them."""

    examples: tuple[Path, ...]
    """Intact files; for a kind that is a folder, the files in it that are changed."""
    read: Callable[[Path], object]
    """Function that reads a changed file."""
    is_folder: bool = False
    """True: the other files of the folder of an example are copied, too."""
    weight: int = 1
    """Relative number of inputs."""
    copy: Callable[[Path, Path], Path] | None = None
    """Function that copies an example with other files into a folder and returns the path of the copy."""


def make_kinds(folder: Path) -> dict[str, Kind]:
    """Write intact examples of all kinds into a folder, and return the kinds by name."""
    datasets = Datasets(folder / "datasets")
    return {
        "image": Kind(_images(folder), read_images, weight=5),
        "dicom": Kind(_dicom_files(folder), read_images, weight=6),
        "nifti": Kind(_volumes(folder), read_images, weight=4),
        "itk": Kind(_itk_volumes(folder), read_images, weight=4),
        "series": Kind(_series(folder / "series"), _read_series, is_folder=True, weight=3),
        "archive": Kind(_archives(folder), _read_archive, weight=2),
        "video": Kind(write_videos(folder), read_images, weight=3),
        "table": Kind(_tables(folder), _read_table, weight=5),
        "dataset": Kind(datasets.files, datasets.read, weight=5, copy=datasets.copy),
        "config": Kind(_configs(folder), read_config, weight=3),
        **_model_kinds(folder),
    }


def _images(folder: Path) -> tuple[Path, ...]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    files = []
    for suffix in ("png", "jpg", "tif", "webp", "bmp", "gif"):
        files.append(folder / f"color.{suffix}")
        Image.fromarray(pixels).save(files[-1])
    for suffix in ("png", "tif"):
        files.append(folder / f"deep.{suffix}")
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(files[-1])
    files.append(folder / "packed.tif")
    Image.fromarray(pixels).save(files[-1], compression="tiff_lzw", tiffinfo={274: 6})
    return tuple(files)


def _dicom_files(folder: Path) -> tuple[Path, ...]:
    from pydicom.data import get_testdata_file

    files = [Path(shutil.copy(str(get_testdata_file(name, download=False)), folder)) for name in DICOM_FILES]
    files.append(folder / "compressed.dcm.gz")
    files[-1].write_bytes(gzip.compress(files[0].read_bytes()))
    return tuple(files)


def _volumes(folder: Path) -> tuple[Path, ...]:
    values = np.random.default_rng(0).integers(0, 1000, (12, 14, 9)).astype(np.int16)
    files = [folder / "scan.nii", folder / "scan.nii.gz", folder / "series.nii"]
    for file in files[:2]:
        write_nifti(file, values)
    write_nifti(files[2], np.stack([values] * 3, -1).astype(np.float32))
    return tuple(files)


def _itk_volumes(folder: Path) -> tuple[Path, ...]:
    """Write MetaImage and NRRD volumes in one file, raw and compressed."""
    values = np.random.default_rng(0).integers(0, 1000, (12, 14, 9)).astype("<i2").tobytes()
    meta = "NDims = 3\nDimSize = 12 14 9\nElementSpacing = 1 1 2\nElementType = MET_SHORT\nCompressedData = {}\n"
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: 12 14 9\nendian: little\nspace: left-posterior-superior\n"
    nrrd += "space directions: (1,0,0) (0,1,0) (0,0,2)\nkinds: domain domain domain\nencoding: {}\n\n"
    contents = {
        "raw.mha": (meta.format(False) + "ElementDataFile = LOCAL\n").encode() + values,
        "packed.mha": (meta.format(True) + "ElementDataFile = LOCAL\n").encode() + zlib.compress(values),
        "raw.nrrd": nrrd.format("raw").encode() + values,
        "packed.nrrd": nrrd.format("gzip").encode() + gzip.compress(values),
        "packed2.nrrd": nrrd.format("bzip2").encode() + bz2.compress(values),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return tuple(folder / name for name in contents)


def _series(folder: Path) -> tuple[Path, ...]:
    """Write a DICOM series of three slices."""
    import pydicom
    from pydicom.data import get_testdata_file

    folder.mkdir()
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    for number in range(3):
        dataset.ImagePositionPatient[2] = 5.0 * number
        dataset.save_as(folder / f"{number}.dcm")
    return tuple(sorted(folder.iterdir()))


def _read_series(path: Path) -> object:
    return [read_images(path.parent, axis=axis) for axis in (None, "coronal")]


def _archives(folder: Path) -> tuple[Path, ...]:
    """Write zip archives of two files that begin as DICOM, one for each compression."""
    content = bytes(128) + b"DICM" + bytes(range(256)) * 2
    files = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        files.append(folder / f"archive{method}.zip")
        with zipfile.ZipFile(files[-1], "w", method) as archive:
            for name in ("a/IM1", "a/Läsion"):
                archive.writestr(name, content)
    return tuple(files)


def _read_archive(path: Path) -> object:
    with tempfile.TemporaryDirectory() as folder:
        return unpack(path, Path(folder), 10**6)


def write_videos(folder: Path) -> tuple[Path, ...]:
    """Write an AVI, an MP4 and an MKV file of 6 frames, and return their paths."""
    import av

    frames = np.random.default_rng(0).integers(0, 256, (6, 48, 64), dtype=np.uint8)
    write_avi(folder / "cine.avi", list(frames))
    for name, codec in (("cine.mp4", "mpeg4"), ("cine.mkv", "ffv1")):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([frame] * 3, -1), format="rgb24")))
            container.mux(stream.encode())
    return folder / "cine.avi", folder / "cine.mp4", folder / "cine.mkv"


def _tables(folder: Path) -> tuple[Path, ...]:
    rows = [
        {"image": f"{n}.png", "question": f"Wo ist die Läsion {n}?", "answer": 'left, "lower"\nlobe'} for n in range(8)
    ]
    files = [folder / name for name in ("rows.json", "rows.jsonl", "rows.csv", "rows.tsv", "rows.csv.gz")]
    files[0].write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    files[1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for file in files[2:]:
        pandas.DataFrame(rows).to_csv(file, index=False, sep="\t" if file.suffix == ".tsv" else ",")
    return tuple(files)


def _configs(folder: Path) -> tuple[Path, ...]:
    source = '''"""A config."""

model_args = dict(type="medgemma", model_name_or_path="ckpt/x", lora_r=16, image_size=448, max_length=512)
data_args = dict(train=dict(type="DummyDataset", size=8), validation=None)
training_args = dict(max_steps=3, per_device_train_batch_size=1, learning_rate=1e-4, optim="adamw_torch")
'''
    (folder / "run.py").write_text(source, encoding="utf-8")
    return (folder / "run.py",)


def _read_table(path: Path) -> object:
    records = Records(path)
    return [records[index] for index in range(len(records))]


def _model_kinds(folder: Path) -> dict[str, Kind]:
    """Return the kinds that belong to a tiny model: its files, weights, adapter and template, and a GGUF file."""
    from mllm.models.adapters.files import read_adapter
    from mllm.tiny.checkpoints import write_tiny

    model = write_tiny("gemma3n", folder / "model")
    adapter = _write_adapter(model, folder / "adapter")
    (model / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(16))
    return {
        "checkpoint": Kind(tuple(model / name for name in TEXT_FILES), _read_checkpoint, is_folder=True, weight=2),
        "safetensors": Kind((model / "model.safetensors",), _read_weights, is_folder=True),
        "adapter": Kind(tuple(adapter.iterdir()), lambda path: read_adapter(path.parent), is_folder=True, weight=2),
        "template": Kind((model / "chat_template.jinja",), _read_template, is_folder=True, weight=2),
        "gguf": Kind((model / "model.gguf",), _read_gguf, is_folder=True),
    }


def _write_adapter(model: Path, folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    options = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base, options).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def _read_checkpoint(path: Path) -> object:
    _read_template(path)
    return _read_weights(path)


def _read_weights(path: Path) -> object:
    from transformers import AutoModelForCausalLM

    from mllm.export.gguf.weights import Weights
    from mllm.models.backbone.loading import load_config, load_model

    load_config(str(path.parent))
    load_model(AutoModelForCausalLM, str(path.parent), precision="fp32", device="cpu")
    weights = Weights(path.parent)
    return [weights.tensor(name) for name in list(weights)[:3]]


def _read_template(path: Path) -> object:
    from mllm.config.schema import ModelArgs
    from mllm.models.builder.build_chat import build_chat_encoder
    from mllm.models.text.load import load_processor

    args = ModelArgs(type="causal-lm", model_name_or_path=str(path.parent), max_length=256)
    encoder = build_chat_encoder(args, load_processor(args))
    # As the data loader does, which adds the row to an unexpected error of a tokenizer.
    with errors_of_row("row 0"):
        return encoder.encode(Sample(turns=[Turn("user", "Is it round?"), Turn("assistant", "yes")]))


def _read_gguf(path: Path) -> object:
    from mllm.export.modelfile import GGUFFiles, write_modelfile
    from mllm.export.ollama import PARAMETERS

    return write_modelfile(path.parent, GGUFFiles(path), None, {**dict.fromkeys(PARAMETERS), "temperature": 0.0})
