"""Writers of generated echocardiograms with known volumes, in the formats of EchoNet-Dynamic and CAMUS."""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mllm.dataset.phantoms.echo import Echo, Probe
from mllm.dataset.phantoms.heart import VIEWS, Heart, draw_heart
from mllm.dataset.phantoms.writers import write_avi, write_mhd, write_nifti
from mllm.dataset.progress import with_progress
from mllm.files import replaced_file, write_text

FILE_LIST = ("FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "FPS", "NumberOfFrames", "Split")
"""Columns of `FileList.csv` of EchoNet-Dynamic."""
TRACINGS = ("FileName", "X1", "Y1", "X2", "Y2", "Frame")
"""Columns of `VolumeTracings.csv` of EchoNet-Dynamic."""
Seed = int | Sequence[int]
_FPS = 30


@dataclass(frozen=True)
class EchoPatient:
    """A generated patient and the ground truth of the files."""

    name: str
    """Name of the video without suffix, or of the folder of the patient."""
    split: str
    heart: Heart
    spacing: float
    """Pixel spacing in mm."""
    ed: int
    """End-diastolic frame, from 0."""
    es: int
    """End-systolic frame, from 0."""
    frames: int


@dataclass(frozen=True)
class _Beat:
    """Phases of the frames of a video."""

    start: int
    """A frame at end diastole."""
    systole: int
    """Number of frames from end diastole to end systole."""
    diastole: int
    """Number of frames from end systole to the next end diastole."""

    def phase(self, frame: int) -> float:
        """Return the phase of a frame: 0 at end diastole, 1 at end systole."""
        elapsed = (frame - self.start) % (self.systole + self.diastole)
        return elapsed / self.systole if elapsed <= self.systole else 1 + (elapsed - self.systole) / self.diastole


def write_echonet(
    folder: Path, splits: Mapping[str, int], seed: Seed = 0, frames: int = 40, size: int = 112
) -> list[EchoPatient]:
    """Write patients in the format of EchoNet-Dynamic: `FileList.csv`, `VolumeTracings.csv` and `Videos/*.avi`.

    `splits` is the number of patients of each official split ({"TRAIN": 8, "VAL": 2, "TEST": 2}). Videos have up to
    `frames` (at least 30) frames of `size` x `size` pixels. For every second patient the end-systolic frame precedes
    the end-diastolic one; a traced frame may be the first or the last. In four of five patients the smaller tracing is
    first in the file. A patient depends on `seed` and its number only.
    """
    assert frames >= 30, "one and a half beats must fit"
    (folder / "Videos").mkdir(parents=True, exist_ok=True)
    patients, list_rows, tracing_rows = [], [], []
    for number, split, rng in _numbered(splits, seed):
        heart, probe = draw_heart(rng), Probe(size, float(rng.uniform(148, 165)))
        systole, diastole = int(rng.integers(6, 10)), int(rng.integers(9, 15))
        beat = _Beat(0 if number % 4 == 0 else int(rng.integers(1, 6)), systole, diastole)
        es_first = number % 2 == 1
        ed = beat.start + (systole + diastole if es_first else 0)
        count = ed + 1 if number % 4 == 3 else frames
        patient = EchoPatient(
            f"0X{int(rng.integers(2**63)):016X}", split, heart, probe.spacing, ed, beat.start + systole, count
        )
        echo = Echo(heart, probe, rng)
        pictures = [echo.frame(beat.phase(frame)) for frame in range(count)]
        _replace(folder / "Videos" / f"{patient.name}.avi", partial(write_avi, frames=pictures, fps=_FPS))
        patients.append(patient)
        volumes = (heart.ef, heart.esv, heart.edv)
        list_rows.append((patient.name, *volumes, size, size, _FPS, count, split))
        moments = [(patient.es, 1.0), (patient.ed, 0.0)]
        for frame, phase in reversed(moments) if number % 5 == 4 else moments:
            tracing_rows += [(f"{patient.name}.avi", *line, frame) for line in echo.tracing(phase).tolist()]
    _write_table(folder / "FileList.csv", FILE_LIST, list_rows)
    _write_table(folder / "VolumeTracings.csv", TRACINGS, tracing_rows)
    return patients


def write_camus(
    folder: Path,
    splits: Mapping[str, int],
    seed: Seed = 0,
    release: Literal["nifti", "mhd"] = "nifti",
    size: int = 160,
    first: int = 1,
) -> list[EchoPatient]:
    """Write patients in the format of CAMUS: images, masks, half sequences, `Info_*.cfg` of two views, and splits.

    `splits` is the number of patients in "training", "validation" and "testing". The older release has MetaImage files
    with pixels twice as wide as high, the cfg keys `LVef`, `LVedv`, `LVesv`, and splits in folds (two here); the newer
    one has NIfTI files and a rounded `EF`. For every second patient the half sequence begins at end systole. The first
    patient has the number `first`.
    """
    patients = []
    for number, split, rng in _numbered(splits, seed):
        heart, probe = draw_heart(rng, round_heart=False), Probe(size, float(rng.uniform(148, 165)))
        count = int(rng.integers(8, 12))
        ed, es = (0, count - 1) if number % 2 == 0 else (count - 1, 0)
        patient = EchoPatient(f"patient{number + first:04}", split, heart, probe.spacing, ed, es, count)
        patients.append(patient)
        home = folder / ("database_nifti" if release == "nifti" else "training") / patient.name
        home.mkdir(parents=True, exist_ok=True)
        for view in VIEWS:
            echo = Echo(heart, probe, rng, view)
            phases = [abs(frame - ed) / (count - 1) for frame in range(count)]
            _write_camus_view(home, patient, view, release, echo, phases)
    for split in splits:
        names = "".join(f"{patient.name}\n" for patient in patients if patient.split == split)
        if release == "nifti":
            write_text(folder / "database_split" / f"subgroup_{split}.txt", names)
        for fold in (1, 2) if release == "mhd" else ():
            write_text(folder / "listSubGroups" / f"subGroup{fold}_{split}.txt", names)
    return patients


def _write_camus_view(
    home: Path, patient: EchoPatient, view: str, release: str, echo: Echo, phases: Sequence[float]
) -> None:
    """Write the files of one view of one patient."""
    stem, heart = f"{patient.name}_{view}", patient.heart
    pictures = np.stack([echo.frame(phase) for phase in phases])
    masks = np.stack([echo.mask(phase) for phase in phases])
    moments: dict[str, Any] = {"ED": patient.ed, "ES": patient.es}
    moments["half_sequence" if release == "nifti" else "sequence"] = slice(None)
    for moment, frames in moments.items():
        for suffix, series in (("", pictures), ("_gt", masks)):
            if release == "nifti":
                _write_nifti(home / f"{stem}_{moment}{suffix}.nii.gz", series[frames], patient.spacing)
            else:
                wide = series[frames][..., ::2]
                steps = (2 * patient.spacing, patient.spacing, 1.0)[: wide.ndim]
                write_mhd(home / f"{stem}_{moment}{suffix}.mhd", wide, steps, compressed=suffix == "_gt")
    facts: dict[str, Any] = {"ED": patient.ed + 1, "ES": patient.es + 1, "NbFrame": patient.frames}
    facts |= {"Sex": "F", "Age": 60, "ImageQuality": "Good"}
    if release == "nifti":
        facts |= {"EF": round(heart.ef), "FrameRate": 50}
    else:
        facts |= {"LVedv": f"{heart.edv:.1f}", "LVesv": f"{heart.esv:.1f}", "LVef": f"{heart.ef:.1f}"}
    write_text(home / f"Info_{view}.cfg", "".join(f"{key}: {value}\n" for key, value in facts.items()))


def _write_nifti(path: Path, pixels: np.ndarray, spacing: float) -> None:
    """Write pixels [H, W] or [F, H, W] as ITK does: horizontal, vertical and time axis, to the left and posterior."""
    affine = np.diag([-spacing, -spacing, 1.0, 1.0])
    _replace(path, partial(write_nifti, volume=pixels.T, affine=affine))


def _numbered(splits: Mapping[str, int], seed: Seed) -> Iterator[tuple[int, str, np.random.Generator]]:
    """Yield the number, split and random generator of each patient."""
    names = [split for split, count in splits.items() for _ in range(count)]
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    for number, split in enumerate(with_progress(names, "drawing echocardiograms")):
        yield number, split, np.random.default_rng((*seeds, number))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by the file that `write` writes under a temporary name with the same suffixes."""
    temporary = path.with_name(f"{uuid.uuid4().hex[:8]}-{path.name}")
    write(temporary)
    os.replace(temporary, path)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with replaced_file(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)
