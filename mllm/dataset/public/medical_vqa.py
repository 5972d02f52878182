"""Public sets of questions about medical images: VQA-RAD, SLAKE, PathVQA and PMC-VQA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from typing_extensions import override

from mllm.dataset.public.official import field, official_split, rows_of
from mllm.dataset.public.vqa_layouts import LAYOUTS, LayoutName
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import ERROR, Records
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS

FIELDS = ("image", "question", "answer")


@DATASETS.register_module()
class MedicalVQADataset(VQADataset):
    """Published questions about medical images, in the folder and with the columns of one of four sets.

    * `vqa_rad` (Lau et al., Scientific Data 2018), as at https://osf.io/89kps: `VQA_RAD Dataset Public.json` and
      `VQA_RAD Image Folder/`. The test split has the rows whose `phrase_type` begins with `test`. Images occur in both
      splits, and so do paraphrases of a question: the check for a patient in two splits refuses them. For a split
      without common images divide `split='all'` by `PatientSplit`; for the published one set `by_image=False`.
    * `slake` (arXiv:2102.09542): `train.json`, `validate.json` (or `validation.json`), `test.json` and
      `imgs/xmlab1/source.jpg`.
    * `path_vqa` (arXiv:2003.10286): `qas/train/train_qa.pkl` (likewise `val` and `test`) and `images/train/NAME.jpg`.
    * `pmc_vqa` (arXiv:2305.10415): `train.csv`, `test.csv`, `test_clean.csv` and `images/`; version 2 `train_2.csv`,
      `test_2.csv` and `figures/`.

    All questions about an image are one group, as those of a patient.

    Args:
        data_path: Folder of the dataset.
        layout: 'vqa_rad', 'slake', 'path_vqa' or 'pmc_vqa'; None: the one whose table of the split exists.
        split: 'train', 'test' or 'all' of VQA-RAD; 'train', 'validate' or 'test' of SLAKE; 'train', 'val' or 'test' of
            PathVQA; 'train', 'test', 'test_clean', 'train_2' or 'test_2' of PMC-VQA.
        answer_type: 'CLOSED' (yes or no, or a choice) or 'OPEN'; None: both.
        by_image: True: an image counts as a patient. False: images are not compared between splits.
        language: 'en' or 'zh' of SLAKE; None: both.
        choices: Questions of PMC-VQA have their choices, and the answer is a letter. False: the answer is its text.
        options: Options of `VQADataset`.
    """

    has_columns = False
    fixed_layout: ClassVar[LayoutName | None] = None
    """Layout of a class for one set."""

    def __init__(
        self,
        data_path: str | Path,
        layout: LayoutName | None = None,
        split: str = "train",
        answer_type: Literal["OPEN", "CLOSED"] | None = None,
        by_image: bool = True,
        language: Literal["en", "zh"] | None = "en",
        choices: bool = True,
        **options: Any,
    ) -> None:
        root = Path(data_path).expanduser()
        name = self._layout_name(root, layout, split)
        if language != "en" and name != "slake":
            raise ConfigError(f"language is an option of layout='slake', but the layout is '{name}'")
        if not choices and name != "pmc_vqa":
            raise ConfigError(f"choices is an option of layout='pmc_vqa', but the layout is '{name}'")
        official_split(split, tuple(LAYOUTS[name].splits))
        self.layout = LAYOUTS[name](split, language, choices)
        self.answer_type = answer_type
        super().__init__(root, self.layout.images(root), **options)
        if not by_image:
            self.patient_column = None

    def _layout_name(self, root: Path, layout: LayoutName | None, split: str) -> LayoutName:
        """Return the layout that is named, or whose table exists."""
        fixed = self.fixed_layout
        if layout is not None and fixed is not None and layout != fixed:
            raise ConfigError(f"{type(self).__name__} has layout='{fixed}', not '{layout}'")
        if layout is not None or fixed is not None:
            return layout or fixed  # type: ignore[return-value]
        layouts = [
            name
            for name, kind in LAYOUTS.items()
            if any((root / file).is_file() for files in kind.splits.values() for file in files)
        ]
        if len(layouts) > 1:
            raise ConfigError(f"data_path {root} has the tables of several sets: set layout to {' or '.join(layouts)}")
        if not layouts:
            files = [files[0] for kind in LAYOUTS.values() for files in list(kind.splits.values())[:1]]
            raise DataError(
                f"data_path {root} has no {' or '.join(files)}: they are the official files of the four sets"
            )
        return layouts[0]

    @override
    def open_records(self, path: Path) -> Records:
        """Return the selected rows, as rows of `VQADataset` whose patient is the image."""
        records = self.layout.read(self.layout.table(path))
        rows, places = PackedRows(), PackedRows()
        for index, published in rows_of(records):
            try:
                if ERROR in published:
                    raise DataError(published[ERROR])
                row = self.layout.row(published)
            except DataError as error:
                row = {**dict.fromkeys(FIELDS, "unknown"), ERROR: str(error)}
            if row is not None and self._is_selected(row):
                texts = {name: row.get(name) for name in FIELDS}
                patient = None if ERROR in row else row.get("image")
                rows.append({**texts, "patient": patient, ERROR: row.get(ERROR)})
                places.append(records.describe(index))
        return ListedRecords(records.path, rows, places, f"of split '{self.layout.split}'")

    def _is_selected(self, row: Mapping[str, Any]) -> bool:
        return ERROR in row or self.answer_type in (None, field(row, "answer_type").upper())

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        return cls.miniature_with({}, folder, rows)

    @classmethod
    @override
    def miniature_with(cls, options: Mapping[str, Any], folder: Path, rows: int) -> dict[str, Any]:
        """Write the miniature of the layout that the options name, by default VQA-RAD."""
        from mllm.dataset.phantoms.medical_vqa import WRITERS

        layout = options.get("layout") or cls.fixed_layout or "vqa_rad"
        return {**WRITERS[layout](folder, rows), "layout": layout}


@DATASETS.register_module()
class VQARADDataset(MedicalVQADataset):
    """VQA-RAD: `MedicalVQADataset` with `layout='vqa_rad'`."""

    fixed_layout = "vqa_rad"


@DATASETS.register_module()
class SLAKEDataset(MedicalVQADataset):
    """SLAKE: `MedicalVQADataset` with `layout='slake'`."""

    fixed_layout = "slake"


@DATASETS.register_module()
class PathVQADataset(MedicalVQADataset):
    """PathVQA: `MedicalVQADataset` with `layout='path_vqa'`."""

    fixed_layout = "path_vqa"
