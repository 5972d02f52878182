"""Answers of `predictions.jsonl`: the reverse of the rows that an evaluation writes."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from typing_extensions import override

from mllm.coco_masks import decode_runs
from mllm.errors import ConfigError
from mllm.parsing import options_in
from mllm.structures import Answer, Mark


class Predictions(Sequence[dict[str, Any]]):
    """Rows of a file of predictions, which are read again for each pass; 8 bytes a row are in memory.

    Args:
        path: The file.
        places: Offset of each row in the file.
        fields: Names of the fields that a row has.
    """

    def __init__(self, path: Path, places: np.ndarray, fields: frozenset[str]) -> None:
        self._path, self._places, self.fields = path, places, fields

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.chosen(range(len(self)))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    @override
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return list(self.chosen(range(*index.indices(len(self)))))
        return next(self.chosen([range(len(self))[index]]))

    def chosen(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yield the rows with these indices."""
        with self._path.open("rb") as file:
            for index in indices:
                file.seek(self._places[index])
                yield json.loads(file.readline())


def read_predictions(path: Path) -> Predictions:
    """Check a file of predictions, and return its rows.

    Raises:
        ConfigError: The file does not exist, or a line is not a row with `source`, `reference` and `prediction`.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: evaluate the run with mllm evaluate, which writes it")
    places, end, fields = array("q"), 0, set[str]()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            places.append(end)
            end += len(line)
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                raise ConfigError(f"{path} is damaged, it is not text in UTF-8: evaluate the run again") from None
            except ValueError as error:
                raise ConfigError(f"{path}:{number} is not JSON ({error}): evaluate the run again") from error
            if not isinstance(row, dict) or not {"source", "reference", "prediction"} <= row.keys():
                raise ConfigError(f"{path}:{number} has no source, reference and prediction: evaluate the run again")
            fields.update(row)
    return Predictions(path, np.array(places, np.int64), frozenset(fields))


def answers_of(row: Mapping[str, Any]) -> tuple[Answer, Answer]:
    """Return prediction and reference of a row of `answer_split`. Boxes are rounded to 0.1 pixels."""
    return prediction_in(row), reference_in(row)


def prediction_in(row: Mapping[str, Any]) -> Answer:
    """Return the prediction of a row; see `answers_of`."""
    return Answer(
        row["prediction"],
        _marks(row, ""),
        unreadable=row.get("unreadable", 0),
        tokens=row.get("tokens", 0),
        measures=row.get("measures", {}),
        scores=row.get("scores", {}),
    )


def reference_in(row: Mapping[str, Any]) -> Answer:
    """Return the reference of a row; see `answers_of`."""
    return Answer(
        row["reference"],
        _marks(row, "reference_"),
        measures=row.get("reference_measures", {}),
        group=row.get("patient"),
        task=row.get("task"),
        spacings=tuple(None if pair is None else (pair[0], pair[1]) for pair in row.get("pixel_spacings", [])),
        options=options_in(row.get("question", "")),
    )


def _marks(row: Mapping[str, Any], prefix: str) -> tuple[Mark, ...]:
    """Return the marks of the fields of `mark_fields`. An empty mask is in the first image."""
    if not any(prefix + name in row for name in ("boxes", "masks", "points")):
        return ()
    boxes = [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in row.get(f"{prefix}boxes", [])]
    images = row.get(f"{prefix}box_images") or [0] * len(boxes)
    masks = [decode_runs(mask) for mask in row.get(f"{prefix}masks", [])]
    owners = row.get(f"{prefix}mask_boxes") or list(range(len(masks)))
    mask_of = dict(zip(owners, masks, strict=True))
    marks = [
        Mark(box=box, mask=mask_of.get(index), image=image)
        for index, (box, image) in enumerate(zip(boxes, images, strict=True))
    ]
    marks += [Mark(mask=mask) for owner, mask in zip(owners, masks, strict=True) if owner not in range(len(boxes))]
    marks += [Mark(point=(float(x), float(y))) for x, y in row.get(f"{prefix}points", [])]
    return tuple(marks)
