"""`config/README.md` is the generated document of all keys."""

from __future__ import annotations

import dataclasses

from mllm.config.hardware import CHECKOUT
from mllm.config.key_document import key_document
from mllm.config.schema import DataArgs, DistillArgs, ExportArgs, ModelArgs, PrivacyArgs, StoppingArgs


def test_the_file_is_up_to_date():
    file = CHECKOUT / "config" / "README.md"
    assert file.read_text(encoding="utf-8") == key_document(), (
        "run: python mllm/pipeline/show.py keys > config/README.md"
    )


def test_every_key_of_the_schema_has_a_row_and_a_sentence():
    rows = {line.split("`")[1]: line for line in key_document().splitlines() if line.startswith("| `")}
    for cls in (ModelArgs, DataArgs, StoppingArgs, ExportArgs, DistillArgs, PrivacyArgs):
        for item in dataclasses.fields(cls):
            assert rows[item.name].rstrip(" |").endswith("."), item.name
