"""Where CAMUS's two releases keep pictures, masks, facts and splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mllm.dataset.echo.planes import Plane, read_plane
from mllm.errors import DataError


@dataclass(frozen=True)
class Release:
    """Where one release of CAMUS keeps its files."""

    folder: Path
    homes: tuple[str, ...]
    """The folders in it that hold the patients'."""
    suffix: str
    sequence: str
    """What a series from one moment to the other is called."""
    lists: str
    """The file with the names of a split's patients."""

    @classmethod
    def of(cls, folder: Path, fold: int) -> Release:
        """The release in a folder; raises `DataError` where there is none."""
        if (folder / "database_nifti").is_dir():
            lists = "database_split/subgroup_{split}.txt"
            return cls(folder, ("database_nifti",), ".nii.gz", "half_sequence", lists)
        if (folder / "training").is_dir():
            lists = f"listSubGroups/subGroup{fold}_{{split}}.txt"
            return cls(folder, ("training", "testing"), ".mhd", "sequence", lists)
        raise DataError(
            f"{folder} is no folder of CAMUS: it must hold database_nifti (with database_split) or, in the older "
            "release, training (with listSubGroups)"
        )

    def home(self, name: str) -> Path:
        """A patient's folder."""
        found = [self.folder / home / name for home in self.homes if (self.folder / home / name).is_dir()]
        if not found:
            raise DataError(f"{self.folder / self.homes[0] / name} does not exist")
        return found[0]

    def names(self, split: str | None) -> list[str]:
        """The patients of a split in the order of its file, or all there are."""
        if split is None:
            return sorted(path.name for home in self.homes for path in (self.folder / home).glob("patient*"))
        path = self.list_of(split)
        try:
            return path.read_text(encoding="utf-8").split()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; it names the patients of {split}") from error

    def list_of(self, split: str) -> Path:
        """The file with the names of a split's patients."""
        return self.folder / self.lists.format(split=split)

    def facts(self, name: str, chamber: str) -> dict[str, str]:
        """What a patient's `Info_4CH.cfg` says; raises `DataError` where it is not there or a line has no colon."""
        path = self.home(name) / f"Info_{chamber}.cfg"
        try:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        facts = {}
        for number, line in enumerate(lines, start=1):
            key, colon, value = line.partition(":")
            if not colon:
                raise DataError(f"{path}, line {number}: must be 'Key: value', not {line!r}")
            facts[key.strip()] = value.strip()
        return facts

    def plane(self, name: str, chamber: str, moment: str, kind: str = "") -> Plane:
        """A patient's picture, or with `kind='_gt'` mask, at a moment ('ED', 'ES').

        It is a file of its own or, where that is absent, a frame of the series, whose number the cfg counts from 1.
        """
        home = self.home(name)
        single = home / f"{name}_{chamber}_{moment}{kind}{self.suffix}"
        series = home / f"{name}_{chamber}_{self.sequence}{kind}{self.suffix}"
        if single.is_file() or not series.is_file():
            return read_plane(single)
        number = self.facts(name, chamber).get(moment, "")
        if not number.isdigit() or number == "0":
            raise DataError(f"{home / f'Info_{chamber}.cfg'}: {moment} must be the number of a frame, from 1")
        return read_plane(series, int(number) - 1)
