"""Extraction of a MatFormer slice from the files of a Gemma 3n, tensor by tensor in constant memory."""

from __future__ import annotations

import json
import logging
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open
from tqdm import tqdm
from transformers import PretrainedConfig

from mllm.errors import ConfigError
from mllm.files import write_json
from mllm.models.backbone.checkpoint_folder import find_checkpoint
from mllm.models.backbone.load_errors import explained
from mllm.models.backbone.loading import load_config
from mllm.models.backbone.tensor_stream import Cut, Spans, spans_of, write_cuts
from mllm.models.backbone.weight_files import file_names, weight_files, write_index
from mllm.models.gemma3n.matformer import Slice, check_sharing, sliced_config
from mllm.run_files import MODEL_CONFIG, MODEL_INDEX, MODEL_WEIGHTS, TRAINED

COMPANIONS = (".json", ".jinja", ".model", ".txt")
"""Suffixes of the files of the tokenizer, the processor and the generation config."""

TABLE, PROJECTION = "embed_tokens_per_layer.weight", "per_layer_model_projection.weight"
"""The tensors of the per-layer inputs: a block of columns of the first and of rows of the second for each layer."""
INPUT_MATRICES, OUTPUT_MATRIX = ("mlp.gate_proj.weight", "mlp.up_proj.weight"), "mlp.down_proj.weight"
"""The tensors of a feed-forward network: neurons are rows of the first two and columns of the last."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """Number of parameters before and after an extraction."""

    before: int
    after: int


def open_checkpoint(name: str) -> tuple[Path, PretrainedConfig]:
    """Return the folder and the config of a Gemma 3n; a name on the Hugging Face Hub is downloaded.

    Raises `ConfigError` for other architectures, for quantized weights and without safetensors files.
    """
    location = find_checkpoint(name)
    config = load_config(location)
    if config.get_text_config().model_type != "gemma3n_text":
        raise ConfigError(f"'{name}' is a '{config.model_type}' checkpoint; only Gemma 3n contains MatFormer slices")
    if "quantization_config" in config.to_dict():
        raise ConfigError(
            f"'{name}' contains quantized weights, which cannot be sliced: use the full-precision checkpoint"
        )
    folder = Path(location)
    if not folder.is_dir():
        with explained(location):
            patterns = [f"*{suffix}" for suffix in (*COMPANIONS, ".safetensors")]
            folder = Path(snapshot_download(location, allow_patterns=patterns))
    if not weight_files(folder):
        raise ConfigError(f"'{name}' contains no {MODEL_WEIGHTS}: save its weights as safetensors first")
    return folder, config


def extract(source: Path, config: PretrainedConfig, folder: Path, choice: Slice) -> Sizes:
    """Write the slice `choice` of the checkpoint in `source`, whose config is `config`, to the empty `folder`.

    config.json is written last. Raises `ConfigError` if the tensors in the files do not match the config, and see
    `check_sharing`.
    """
    check_sharing(config, choice)
    with ExitStack() as stack, explained(str(source)):
        opened = [stack.enter_context(safe_open(file, "pt")) for file in weight_files(source)]
        plans = _plans(opened, config.get_text_config(), choice, source)
        _write_weights(folder, [plan for plan in plans if plan])
        before = sum(Cut(handle, name).header(name).elements for handle in opened for name in handle.keys())  # noqa: SIM118
        after = sum(cut.header(name).elements for plan in plans for name, cut in plan.items())
    for path in sorted(source.iterdir()):
        if path.name == TRAINED or (path.suffix in COMPANIONS and path.name not in (MODEL_CONFIG, MODEL_INDEX)):
            shutil.copyfile(path, folder / path.name)
    values = json.loads((source / MODEL_CONFIG).read_text(encoding="utf-8"))
    write_json(folder / MODEL_CONFIG, sliced_config(values, config, choice))
    return Sizes(before, after)


def _plans(opened: list[Any], text: PretrainedConfig, choice: Slice, source: Path) -> list[dict[str, Cut]]:
    """Return the kept parts of each open file by their new names."""
    names = [name for handle in opened for name in handle.keys()]  # noqa: SIM118
    tables = [name for name in names if name.endswith(TABLE)]
    if len(tables) != 1:
        raise ConfigError(f"the weights in {source} contain {len(tables)} tensors named {TABLE}; a Gemma 3n has one")
    prefix = tables[0].removesuffix(TABLE)
    required = {prefix + PROJECTION}
    parts = (*INPUT_MATRICES, OUTPUT_MATRIX)
    required |= {f"{prefix}layers.{layer}.{part}" for layer in choice.layers for part in parts}
    if absent := sorted(required - set(names)):
        raise ConfigError(f"the weights in {source} lack {absent[0]}, which is required by its {MODEL_CONFIG}")
    plans = []
    for handle in opened:
        plan: dict[str, Cut] = {}
        for name in handle.keys():  # noqa: SIM118
            if name.startswith(prefix):
                plan |= _cut(handle, prefix, name.removeprefix(prefix), text, choice)
            else:
                plan[name] = Cut(handle, name)
        plans.append(plan)
    return plans


def _cut(handle: Any, prefix: str, name: str, text: PretrainedConfig, choice: Slice) -> dict[str, Cut]:
    """Return the kept part of the language model's tensor `prefix + name` by its new name; empty if none is kept."""
    block_width = text.hidden_size_per_layer_input
    rows: Spans | None = None
    columns: Spans | None = None
    new, full_sizes = name, {}
    inner = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if inner:
        layer, part = int(inner[1]), inner[2]
        if layer not in choice.layers:
            return {}
        position = choice.layers.index(layer)
        new = f"layers.{position}.{part}"
        neurons = (range(choice.widths[position]),)
        if part in INPUT_MATRICES:
            rows, full_sizes = neurons, {0: text.intermediate_size[layer]}
        elif part == OUTPUT_MATRIX:
            columns, full_sizes = neurons, {1: text.intermediate_size[layer]}
    elif name == TABLE:
        columns, full_sizes = spans_of(choice.layers, block_width), {1: text.num_hidden_layers * block_width}
    elif name == PROJECTION:
        rows, full_sizes = spans_of(choice.layers, block_width), {0: text.num_hidden_layers * block_width}
    shape = handle.get_slice(prefix + name).get_shape()
    for dimension, size in full_sizes.items():
        if shape[dimension] != size:
            raise ConfigError(
                f"{prefix}{name} has the shape {shape}, but config.json requires {size:,} in dimension {dimension}"
            )
    return {prefix + new: Cut(handle, prefix + name, rows, columns)}


def _write_weights(folder: Path, plans: list[dict[str, Cut]]) -> None:
    """Write one file for each plan, and an index if there are several."""
    total = sum(cut.header(name).size for plan in plans for name, cut in plan.items())
    weight_map: dict[str, str] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="extracting", leave=False, delay=2) as bar:
        for file, plan in zip(file_names(len(plans)), plans, strict=True):
            write_cuts(folder / file, plan, bar.update)
            weight_map |= dict.fromkeys(plan, file)
    if len(plans) > 1:
        write_index(folder, weight_map, total_size=total)
