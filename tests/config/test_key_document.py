"""`config/README.md` and `config/DATASETS.md` are the generated documents of all keys and of all datasets."""

from __future__ import annotations

import dataclasses

from mllm.config.dataset_document import TASKS, dataset_document
from mllm.config.hardware import CHECKOUT
from mllm.config.key_document import key_document
from mllm.config.schema import DataArgs, DistillArgs, ExportArgs, ModelArgs, PrivacyArgs, StoppingArgs
from mllm.registry import DATASETS, METRICS


def test_the_file_is_up_to_date():
    file = CHECKOUT / "config" / "README.md"
    assert file.read_text(encoding="utf-8") == key_document(), (
        "run: python mllm/pipeline/show.py keys > config/README.md"
    )


def test_the_options_of_datasets_are_up_to_date_and_the_tasks_name_classes_and_configs():
    file = CHECKOUT / "config" / "DATASETS.md"
    assert file.read_text(encoding="utf-8") == dataset_document(), (
        "run: python mllm/pipeline/show.py datasets > config/DATASETS.md"
    )
    for task in TASKS:
        assert set(task.classes) <= DATASETS.locations.keys() and set(task.metrics) <= METRICS.locations.keys()
        assert not task.config or (CHECKOUT / "config" / "training_configs" / f"{task.config}.py").is_file()


def test_every_key_of_the_schema_has_a_row_and_a_description():
    rows = {line.split("`")[1]: line for line in key_document().splitlines() if line.startswith("| `")}
    for cls in (ModelArgs, DataArgs, StoppingArgs, ExportArgs, DistillArgs, PrivacyArgs):
        for item in dataclasses.fields(cls):
            assert rows[item.name].rstrip(" |").endswith("."), item.name
