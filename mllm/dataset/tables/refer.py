"""Reader of the original files of RefCOCO, RefCOCO+ and RefCOCOg: a pickle of expressions and COCO instances."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import IO, Any

from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.records import ERROR
from mllm.dataset.tables.text_files import read_text_file
from mllm.errors import DataError

ALLOWED_TYPES = "dicts, lists, tuples, sets, strings, numbers, True, False and None"
_FAULTS = (ValueError, IndexError, AttributeError, TypeError, KeyError)
"""Errors of operations of a damaged pickle on other objects than those that they were written for."""


class _PlainUnpickler(pickle._Unpickler):
    """Unpickler of plain containers; classes and functions are refused, because they could run any code.

    It is the one in Python, which takes 2 s for 50,000 references, and not that in C, which takes 0.5 to 0.8 s. The
    latter makes a table as large as the largest number of an object: a damaged number takes up to 64 GB.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return `set`, which old pickles store by name; raise `UnpicklingError` for all other names."""
        if (module, name) in (("builtins", "set"), ("__builtin__", "set")):
            return set
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


class References(ListedRecords):
    """Rows of one split, joined from the two files; the line of a row is its number in the split."""

    def __init__(self, refs: Path, instances: Path, split: str) -> None:
        super().__init__(refs, read_references(refs, instances, split))


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain containers.

    Raises:
        DataError: The file cannot be read, is not a pickle, or contains other objects.
    """
    try:
        with path.open("rb") as file:
            return _load(file)
    except (*_FAULTS, pickle.UnpicklingError, EOFError, struct.error) as error:
        raise DataError(f"{path} is refused: {error}; a pickle may only contain {ALLOWED_TYPES}") from error
    except (MemoryError, OverflowError) as error:  # a damaged length
        raise DataError(f"{path} is damaged: it has an object that is larger than the memory") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _load(file: IO[bytes]) -> Any:
    return _PlainUnpickler(file, encoding="latin1").load()  # written by Python 2


def read_references(refs: Path, instances: Path, split: str) -> list[dict[str, Any]]:
    """Return one row per sentence: `img_path`, `expression`, `bbox` (x y width height in pixels), `segmentation`.

    A reference that cannot be used is one row with an error.

    Args:
        refs: The file of references, such as `refs(unc).p`.
        instances: The file of COCO instances, `instances.json`.
        split: Name of the split.

    Raises:
        DataError: A file has another form, or no reference is in `split`.
    """
    references = read_plain_pickle(refs)
    if not isinstance(references, list) or not any(isinstance(reference, dict) for reference in references):
        raise DataError(f"{refs} must hold a list of dicts")
    try:
        data = json.loads(read_text_file(instances))
        annotations, images = _by_id(data["annotations"]), _by_id(data["images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{instances} is not a file of COCO instances ({error})") from error
    rows: list[dict[str, Any]] = []
    for number, reference in enumerate(references, start=1):
        place = f"{refs}, reference {number}"
        if not isinstance(reference, dict):
            rows.append({ERROR: f"{place} must be a dict, not a {type(reference).__name__}"})
            continue
        if reference.get("split") != split:
            continue
        try:
            annotation = annotations[reference["ann_id"]]
            fields = {key: annotation[key] for key in ("bbox", "segmentation")}
            name = images[reference["image_id"]]["file_name"]
            rows += [{"img_path": name, "expression": item["sent"], **fields} for item in reference["sentences"]]
        except (KeyError, TypeError) as error:
            rows.append({ERROR: f"{place}: {error} is missing in it or in {instances}"})
    if not rows:
        known = sorted({str(reference.get("split")) for reference in references if isinstance(reference, dict)})
        raise DataError(f"{refs} has no reference of split '{split}'; it has {', '.join(known)}")
    return rows


def _by_id(items: list[Any]) -> dict[Any, dict[str, Any]]:
    """Return the objects of a list by their ids; those that are damaged are absent, an error of what refers to them."""
    return {item["id"]: item for item in items if isinstance(item, dict) and "id" in item}
