"""Documents of datasets: the table of tasks in `config/README.md`, and `config/DATASETS.md` with all options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mllm.options import format_type
from mllm.registry import DATASETS
from mllm.signatures import FIELDS


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks."""

    name: str
    row: str
    """Columns of a table, or official files."""
    classes: tuple[str, ...]
    """Dataset classes."""
    answer: str
    metrics: tuple[str, ...]
    config: str
    """Example in `config/training_configs`; empty: none."""

    def __str__(self) -> str:
        """Return the row in Markdown."""
        cells = [self.name, self.row, _codes(self.classes), self.answer, _codes(self.metrics), _codes([self.config])]
        return f"| {' | '.join(cells)} |"


TASKS = (
    Task(
        "question and answer",
        "`image`, `question`, `answer`",
        ("VQADataset", "MedicalVQADataset"),
        "text",
        ("accuracy", "exact_match", "token_f1", "short_answer", "choice"),
        "medgemma_vqa_rad",
    ),
    Task(
        "report",
        "`image`, `question`, `answer`",
        ("VQADataset", "MIMICCXRDataset", "IUXrayDataset"),
        "text",
        ("bleu", "rouge_l", "cider", "meteor", "chexpert_f1"),
        "medgemma_cxr_report",
    ),
    Task(
        "one of several classes",
        "folder of the class",
        ("ClassificationFolderDataset",),
        "text",
        ("balanced_accuracy", "accuracy", "auroc"),
        "",
    ),
    Task(
        "several labels",
        "`image`, a column for each label (1, 0, -1, blank)",
        ("MultiLabelDataset", "ChestXray14Dataset", "CheXpertDataset", "MIMICCXRLabelDataset"),
        "text",
        ("f1",),
        "medgemma_chexpert",
    ),
    Task(
        "presence",
        "`image`, `label`, `present`",
        ("PresenceDataset",),
        "yes or no",
        ("balanced_accuracy", "short_answer", "auroc"),
        "",
    ),
    Task("counting", "`image`, `label`, `count`", ("CountingDataset",), "integer", ("mae", "accuracy"), ""),
    Task(
        "regression",
        "`image`, `value`",
        ("RegressionDataset",),
        "number with unit, or a measure head",
        ("mae", "rmse", "r2", "limits_of_agreement", "measures"),
        "",
    ),
    Task(
        "detection",
        "`image`, `label`, `boxes`; Pascal VOC; COCO",
        ("DetectionDataset", "ChestXray14BoxDataset"),
        "boxes as text, or a box head",
        ("detection_f1", "rec", "coco_ap"),
        "medgemma_detection",
    ),
    Task(
        "segmentation",
        "folders of images and masks",
        ("SegmentationDataset",),
        "mask head",
        ("dice", "iou", "hd95", "nsd", "res"),
        "medgemma_segmentation",
    ),
    Task(
        "seven tasks of FLARE 2025",
        "official files",
        ("FLAREDataset",),
        "text",
        ("balanced_accuracy", "f1", "detection_f1", "instance_f1", "mae"),
        "medgemma_flare25",
    ),
    Task(
        "referring expressions",
        "`img_path`, `expression`, `bbox` (a box or a list of boxes)",
        ("RECDataset", "RESDataset", "ReferDataset"),
        "boxes, masks",
        ("rec", "res"),
        "perceptionGPT_refcoco",
    ),
    Task(
        "volumes of the heart",
        "official files",
        ("EchoNetDataset", "CamusDataset", "DicomCineDataset"),
        "measure head",
        ("measures",),
        "gemma3n_3ncore_kd",
    ),
    Task(
        "text",
        "`question`, `answer` and other formats",
        ("TextQADataset", "TranslationDataset"),
        "text",
        ("accuracy", "choice", "bleu", "chrf"),
        "t5gemma_mtnt_en_fr",
    ),
    Task(
        "multiple choice",
        "`question`, `options`, `answer`",
        ("MultipleChoiceDataset",),
        "letter of an option",
        ("accuracy", "balanced_accuracy", "auroc"),
        "gemma3n_medrescue",
    ),
)
_TITLE = """## Tasks and datasets

| task | row of a table | dataset class | answer | metrics | example in `config/training_configs` |
|---|---|---|---|---|---|
"""
_NOTES = """
`columns=dict(image="img_name", answer="label")` names other columns of a table with images, `patient_column` the column
of the patient, and `box` the form of boxes: `xyxy`, `xywh` or `normalized`.
[mllm/dataset/public/README.md](../mllm/dataset/public/README.md) says which folder each public set expects,
[DATASETS.md](DATASETS.md) the options of all classes.

Boxes in the format of Pascal VOC or COCO serve four tasks, by the name of the class. This config detects three kinds
of blood cells with any number of boxes in an image; the other tasks need another `type` and another metric:

```python
# blood_cells.py
# data/bccd is the folder BCCD of https://github.com/Shenggan/BCCD_Dataset
_base_ = ["config/_base_/models/medgemma.py", "config/_base_/runtime/finetune.py"]

_CELLS = dict(
    type="DetectionDataset",  # or CountingDataset, MultiLabelDataset, PresenceDataset
    data_path="data/bccd",
    labels=dict(RBC="red blood cells", WBC="white blood cells", Platelets="platelets"),
    empty_boxes="drop",  # some boxes of BCCD have no area
)
data_args = dict(
    train=dict(_CELLS, split="train"),
    validation=dict(_CELLS, split="val"),
    test=dict(_CELLS, split="test"),
    compute_metric=["rec", "coco_ap"],  # or "mae" for counts, "f1" for labels, "balanced_accuracy" for presence
    gen_kwargs=dict(max_new_tokens=700),
)
```

`mllm data blood_cells.py` shows the boxes on a page, and `mllm train blood_cells.py` trains.
"""
_HEADER = """# Options of datasets

This file is generated: `python mllm/pipeline/show.py datasets > config/DATASETS.md`. The docstring of a class
describes its options. `columns` may name the column of each field of a row; other keys are refused.
"""


def task_document() -> str:
    """Return the table of tasks."""
    return _TITLE + "\n".join(map(str, TASKS)) + "\n" + _NOTES


def dataset_document() -> str:
    """Return the content of `config/DATASETS.md`: a table of the options of each dataset of this package."""
    return "\n".join([_HEADER, *(_table(name) for name in sorted(DATASETS.locations))])


def _table(name: str) -> str:
    """Return the summary of a dataset, the fields of its rows and a table of its options."""
    signature = DATASETS.describe(name)
    fields = signature.attributes.get(FIELDS, ())
    names = ["", f"Fields of a row: {_codes(fields)}."] if fields else []
    rows = [f"## {name}", "", signature.summary, *names, "", "| option | type | default |", "|---|---|---|"]
    for option, item in signature.parameters.items():
        default = "required" if item.default is item.empty else f"`{item.default!r}`"
        kind = format_type(item.annotation).replace("|", "\\|")
        rows.append(f"| `{option}` | {kind} | {default} |")
    return "\n".join(rows) + "\n"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names if name)
