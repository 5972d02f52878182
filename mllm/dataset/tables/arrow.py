"""Rows of Parquet files, Arrow folders and datasets of the Hugging Face Hub, mapped into memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mllm.errors import DataError, hint

ARROW_FOLDER = "state.json"
"""File that `datasets.Dataset.save_to_disk` writes into the folder of a split."""
ARROW_SPLITS = "dataset_dict.json"
"""File that `datasets.DatasetDict.save_to_disk` writes next to the folders of its splits."""


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

    def __len__(self) -> int:
        return len(self.table)

    def line(self, index: int) -> int:
        """Return the number of a row from 1, because a table has no lines."""
        return index + 1

    def row(self, index: int) -> dict[str, Any]:
        """Return a row as a dict."""
        row: dict[str, Any] = self.table[index]
        return row


def _load(source: str | Path, split: str | None) -> Any:
    """Load a table; raise `DataError` with the name of `source` if it cannot be read."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"data_path {source} needs the package datasets: pip install -e '.[text]'") from error
    path = Path(source)
    try:
        if path.is_dir():
            return datasets.load_from_disk(str(_split_folder(path, split)))
        if path.suffix == ".parquet":
            from pyarrow.parquet import read_metadata

            if not read_metadata(path).num_rows:
                return []
            return datasets.Dataset.from_parquet(str(path))
        return datasets.load_dataset(str(source), split=split or "train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"data_path {source} cannot be read as a table: {' '.join(str(error).split())}") from error


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
