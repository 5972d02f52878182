"""Table of the installed architectures: those that the tests train, refuse or did not try."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("tested_families.json")
"""Results of `tests/models/test_families.py --record-families`."""
HEADER = """# Model families

Written by `mllm show families`. A test builds a tiny checkpoint of each architecture in the table with its own
processor (`tests/models/test_families.py`). It compares logits, labels, batches, gradients with and without
checkpointing, the merged model and its answers with stock transformers {version}. Architectures with a reason were
tried in the same way, and stop with a sentence that has these words; those with `(answers)` can be asked without
training, and answer as stock transformers does. `(text)` is the language model of a checkpoint that reads images,
`(decoder)` the decoder of an encoder-decoder.

Other architectures of transformers' Auto classes are loaded in the same way. Before the first update, every run checks
the gradients, the loss, that no answer sees its own later tokens, and that a sample has the same states in a batch as
alone; a run that fails a check, or in which the code of the model raises an error, stops with a sentence.
`mllm show families --untested` lists the installed ones.

* **vision LoRA**: `lora_target="vision"` or `"all"` trains the vision tower.
* **4-bit**: `load_in_4bit=True` trains.
* **stored features**: with a frozen vision tower, features of images are computed once (`data_args.vision_cache`).
* **shared images**: questions about an image compute its tokens once, in training (`data_args.share_images`) and in
  evaluations (`data_args.gen_kwargs.share_images`).
* **packing**: `data_args.packing=True` is allowed, with the losses and gradients of samples alone.
* **GGUF**: `mllm export` writes the language model for llama.cpp.

| architecture | type | trains | vision LoRA | 4-bit | stored features | shared images | packing | GGUF |
|---|---|---|---|---|---|---|---|---|
"""
TABLES = {
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "read images",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "decoders of text",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "encoder-decoders",
}
"""Tables of transformers' Auto classes, with the name of their architectures in lists."""


def family_document() -> str:
    """Return the table of the tested architectures in Markdown, as in config/FAMILIES.md."""
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [_line(name, result) for name, result in recorded["families"].items()]
    return HEADER.format(version=recorded["transformers"]) + "\n".join(lines) + "\n"


def untested_families() -> str:
    """Return the installed architectures that are not in the table, by kind."""
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))["families"]
    tested = {name.partition(" ")[0] for name in recorded}
    lines = [f"{kind}: {', '.join(sorted(names - tested))}" for kind, names in installed_architectures().items()]
    return "Installed and not tested:\n" + "\n".join(f"* {line}" for line in lines)


def installed_architectures() -> dict[str, set[str]]:
    """Return the architectures of the Auto classes of the installed transformers by kind, read from its source."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("transformers")
    source = Path(spec.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    model_types: dict[str, set[str]] = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in TABLES:
            pairs = [pair for pair in ast.walk(node.value) if isinstance(pair, ast.Tuple) and len(pair.elts) == 2]
            model_types[TABLES[node.targets[0].id]] = {ast.literal_eval(pair.elts[0]) for pair in pairs}
    return model_types


def _line(name: str, result: Mapping[str, Any]) -> str:
    """Return the row of an architecture."""
    start = f"| `{name}` | `{result['type']}` | "
    if result["refused"]:
        answers = " (answers)" if result["answers"] else ""
        return f"{start}refused: {result['refused']}{answers} | | | | | | |"
    marks = (result[key] for key in ("vision_lora", "four_bit", "features", "shared_images", "packing", "gguf"))
    return start + " | ".join(["yes", *("yes" if mark else "" for mark in marks)]) + " |"
