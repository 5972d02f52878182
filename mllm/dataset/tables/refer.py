"""The original files of RefCOCO, RefCOCO+ and RefCOCOg: a pickle of expressions and COCO's instances."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import IO, Any

from mllm.dataset.tables.records import Records
from mllm.errors import DataError

OPCODES_ONLY = "dicts, lists, tuples, sets, texts, numbers, True, False and None"


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain containers, and refuses every class and function: a pickle could run any program otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses; `set` alone is a name that old pickles write for a container."""
        if (module, name) in (("builtins", "set"), ("__builtin__", "set")):
            return set
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


class References(Records):
    """Rows put together from the two files; `describe` gives their number among those of the split."""

    def __init__(self, refs: Path, instances: Path, split: str) -> None:
        self.path, self._rows = refs, _Rows(read_references(refs, instances, split))


class _Rows:
    """Rows that lie in memory."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def line(self, index: int) -> int:
        return index + 1


def read_plain_pickle(path: Path) -> Any:
    """What a pickle of plain containers holds; raises `DataError` where it is none, or holds anything else."""
    try:
        with path.open("rb") as file:
            return _load(file)
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, AttributeError, TypeError, KeyError) as error:
        raise DataError(f"{path} is refused: {error}; only {OPCODES_ONLY} are read from a pickle") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _load(file: IO[bytes]) -> Any:
    return _PlainUnpickler(file, encoding="latin1").load()  # written by Python 2


def read_references(refs: Path, instances: Path, split: str) -> list[dict[str, Any]]:
    """Rows `img_path`, `expression`, `bbox` (x y width height, pixels), `segmentation`: one for every sentence.

    `refs` is `refs(unc).p` or its kind, `instances` is `instances.json`. Raises `DataError` where they do not fit, or
    where no row is of `split`.
    """
    references = read_plain_pickle(refs)
    if not isinstance(references, list) or not all(isinstance(one, dict) for one in references):
        raise DataError(f"{refs} must hold a list of dicts")
    try:
        data = json.loads(instances.read_text(encoding="utf-8"))
        annotations = {one["id"]: one for one in data["annotations"]}
        images = {one["id"]: one["file_name"] for one in data["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{instances} is no file of COCO instances ({error})") from error
    rows = []
    for number, reference in enumerate(references, start=1):
        if reference.get("split") != split:
            continue
        try:
            annotation = annotations[reference["ann_id"]]
            place = {key: annotation[key] for key in ("bbox", "segmentation")}
            name = images[reference["image_id"]]
            rows += [{"img_path": name, "expression": one["sent"], **place} for one in reference["sentences"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{refs}, reference {number}: {error} is not in it or not in {instances}") from error
    if not rows:
        known = sorted({str(reference.get("split")) for reference in references})
        raise DataError(f"{refs} has no reference of split '{split}'; it has {', '.join(known)}")
    return rows
