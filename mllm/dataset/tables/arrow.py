"""Rows of Parquet files, Arrow folders and datasets of the Hugging Face Hub, mapped into memory."""

from __future__ import annotations

import pickle
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import DataError, hint

if TYPE_CHECKING:
    import datasets

ARROW_FOLDER = "state.json"
"""File that `datasets.Dataset.save_to_disk` writes into the folder of a split."""
ARROW_SPLITS = "dataset_dict.json"
"""File that `datasets.DatasetDict.save_to_disk` writes next to the folders of its splits."""


_BLOCK = 256
"""Number of rows of a block."""


def is_hub_name(name: str | Path) -> bool:
    """Return True if `name` can only be `ORG/NAME` on the Hub: no such file or parent folder, and no file suffix."""
    path = Path(name)
    is_name = re.fullmatch(r"[\w.-]+/[\w-]+", str(name)) is not None
    return is_name and not path.exists() and not path.parent.is_dir()


class ArrowRows:
    """Rows of a table that the library `datasets` maps into memory, so that its size on disk does not matter.

    Args:
        source: A `.parquet` file, a folder written by `save_to_disk`, or `ORG/NAME` on the Hub.
        split: Name of the split, if there are several ('train'); on the Hub also a slice ('train[:1%]').

    Raises:
        DataError: The table cannot be read.
    """

    def __init__(self, source: str | Path, split: str | None = None) -> None:
        self.table = _load(source, split)
        self._last = -1
        """Index of the row that was read last."""
        self._block: list[bytes] = []
        """Pickled rows, so that a change of a row that was read does not change the block."""
        self._start = 0
        """Index of the first row of the block."""

    def __len__(self) -> int:
        return len(self.table)

    def line(self, index: int) -> int:
        """Return the number of a row from 1, because a table has no lines."""
        return index + 1

    def row(self, index: int) -> dict[str, Any]:
        """Return a row as a dict. Consecutive rows are read in blocks."""
        row: dict[str, Any]
        is_next, self._last = index == self._last + 1, index
        if not self._start <= index < self._start + len(self._block):
            if not is_next or self._has_files:
                row = self.table[index]
                return row
            columns = self.table[index : index + _BLOCK]
            rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
            self._block = [pickle.dumps(row, pickle.HIGHEST_PROTOCOL) for row in rows]
            self._start = index
        row = pickle.loads(self._block[index - self._start])
        return row

    @cached_property
    def _has_files(self) -> bool:
        """Return True if a column may hold files, such as images, which `datasets` decodes and which are large."""
        return any("binary" in str(field.type) for field in self.table.data.schema)


def _load(source: str | Path, split: str | None) -> Any:
    """Load a table; raise `DataError` with the name of `source` if it cannot be read."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"data_path {source} needs the package datasets: pip install -e '.[text]'") from error
    path = Path(source)
    try:
        if path.is_dir():
            return _undecoded(datasets.load_from_disk(str(_split_folder(path, split))))
        if path.suffix == ".parquet":
            from pyarrow.parquet import read_metadata

            if not read_metadata(path).num_rows:
                return []
            return _undecoded(datasets.Dataset.from_parquet(str(path)))
        return _undecoded(datasets.load_dataset(str(source), split=split or "train"))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"data_path {source} cannot be read as a table: {' '.join(str(error).split())}") from error


def _undecoded(table: datasets.Dataset) -> datasets.Dataset:
    """Return a table whose columns of images have the bytes of their files, which `datasets` would decode."""
    from datasets import Image

    for name, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False))
    return table


def _split_folder(folder: Path, split: str | None) -> Path:
    """Return the folder of a split; raise `DataError` if `split` is none of the available splits."""
    if not (folder / ARROW_SPLITS).is_file():
        return folder
    names = sorted(child.name for child in folder.iterdir() if (child / ARROW_FOLDER).is_file())
    if split is None:
        raise DataError(f"data_path {folder} has the splits {', '.join(names)}: choose one by split='{names[0]}'")
    if split not in names:
        raise DataError(f"data_path {folder} has no split '{split}'{hint(split, names)}")
    return folder / split
