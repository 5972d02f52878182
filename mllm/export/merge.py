"""Merging of one adapter, or of a combination of several, into their full-precision base model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import snapshot_download

from mllm.config.defaults import with_defaults
from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.export.facts import AdapterFacts, Facts, write_facts
from mllm.export.merged import write as write_merged
from mllm.export.merged import write_streamed
from mllm.export.saved_model import adapter_args, adapter_facts, whole_model_args
from mllm.export.settings import write_settings
from mllm.export.student import write as write_student
from mllm.family import FAMILIES
from mllm.files import refuse_nonempty
from mllm.models.adapters.combine import check_combination, combined
from mllm.models.adapters.files import read_adapter, write_adapter
from mllm.models.backbone.checkpoint_folder import find_checkpoint
from mllm.models.backbone.load_errors import explained
from mllm.models.backbone.loading import load_config
from mllm.models.backbone.streamed import STORED, Unstreamable
from mllm.models.builder.build_chat import build_box_format
from mllm.models.builder.build_options import checkpoint_of
from mllm.models.builder.builder import load_pretrained
from mllm.protocols import Bundle
from mllm.run_files import TRAINED

logger = logging.getLogger(__name__)


def merge(
    adapter: str,
    out: str | Path,
    *,
    base: str | None = None,
    precision: str = "fp32",
    overwrite: bool = False,
    compare: bool = True,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Merge an adapter, shard by shard if the files of the base allow it, and write the model to `out`.

    The weights have the dtypes of the base. Adapters of 4-bit and 8-bit runs are merged into the base in full
    precision. `precision` ('fp32' or 'bf16') is the precision of the comparison of logits, and `compare=False` omits
    it. The result of the comparison and `details` are written to `export_report.json`. Raises `ConfigError` if `out`
    is not empty and not to be overwritten, and for a base with quantized weights only.
    """
    out = Path(out)
    if not overwrite:
        refuse_nonempty(out)
    args = adapter_args(adapter, base)
    source = checkpoint_of(args)
    config = load_config(source)
    if "quantization_config" in config.to_dict():
        raise ConfigError(
            f"'{source}' contains only quantized weights, and merging needs full precision; "
            "pass the full-precision checkpoint as --base"
        )
    details = {"adapters": [adapter], **(details or {})}
    facts = _merged_facts(args, base, details)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    if args.part is not None:
        bundle = load_pretrained(args, replace(detect(), device="cpu", precision="fp32"))
        return write_student(bundle, out, dtype=dtype, facts=facts)
    try:
        return _merge_streamed(args, out, precision, facts=facts, details=details, compare=compare)
    except Unstreamable as reason:
        logger.info("the whole model is loaded: %s", reason)
        details["in_memory_because"] = str(reason)
    refuse_too_large(memory_needed(Path(source), dtype.itemsize, precision), detect().host_memory, precision)
    logger.info("merging %s into %s in %s", args.adapter_path, source, precision)
    hardware = replace(detect(), device="cpu", precision="bf16" if precision == "bf16" else "fp32")
    bundle = load_pretrained(args, hardware)
    return write_merged(bundle, out, facts=facts, dtype=dtype, details=details, compare=compare)


def _merged_facts(args: ModelArgs, base: str | None, details: Mapping[str, Any]) -> Facts:
    """Return the facts about the adapter with the way it is merged; `base` is the base of the command line."""
    facts = adapter_facts(args)
    merging = {key: value for key, value in details.items() if key != "adapters"}
    merging["merged adapters"] = len(details["adapters"])
    return replace(
        facts,
        base=facts.base if base is None else args.model_name_or_path,
        training={**facts.training, **merging},
    )


def merge_several(
    adapters: Sequence[str],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    combination: str = "cat",
    density: float | None = None,
    base: str | None = None,
    **options: Any,
) -> Path:
    """Merge the weighted combination of several adapters of one base; `options` are those of `merge`.

    Raises `ConfigError` for adapters of different bases, with different settings, or with heads or a projector.
    """
    check_combination(len(adapters), weights, combination, density)
    refuse_nonempty(Path(out))
    parts = _combinable_args(adapters, base)
    folder = local_checkpoint(parts[0].model_name_or_path)
    bare = replace(parts[0], model_name_or_path=str(folder), adapter_path=None)
    try:
        model = load_pretrained(bare, replace(detect(), device=STORED, precision="fp32")).model.pretrained
    except Unstreamable as reason:
        raise ConfigError(
            f"several adapters can only be merged shard by shard, but {reason}: merge one of them alone"
        ) from None
    weights = list(weights or [1.0] * len(adapters))
    saved = [read_adapter(str(part.adapter_path)) for part in parts]
    result = combined(model, saved, weights, combination=combination, density=density)
    details = {
        "adapters": list(adapters),
        "weights": weights,
        "combination": combination,
        "density": density,
        "rank": result.config.r,
    }
    with TemporaryDirectory() as temporary:
        result.config.base_model_name_or_path = parts[0].model_name_or_path
        write_adapter(temporary, result.tensors, result.config)
        write_settings(Path(temporary), asdict(parts[0]))
        write_facts(Path(temporary), _combined_facts(parts))
        return merge(temporary, out, base=base, details=details, **options)


def _combined_facts(parts: Sequence[ModelArgs]) -> Facts:
    """Return the facts about a combination of adapters: data and privacy of each of them."""
    facts = [adapter_facts(part) for part in parts]
    return Facts(
        base=facts[0].base,
        settings=facts[0].settings,
        adapters=[AdapterFacts(part.data, part.privacy) for part in facts],
    )


def _combinable_args(adapters: Sequence[str], base: str | None) -> list[ModelArgs]:
    """Return the `model_args` of each adapter; raises `ConfigError` if the adapters cannot be combined."""
    parts = [adapter_args(adapter, base) for adapter in adapters]
    for adapter, part in zip(adapters, parts, strict=True):
        for key, value in asdict(part).items():
            if key != "adapter_path" and value != (first := vars(parts[0])[key]):
                raise ConfigError(
                    f"--adapter {adapters[0]} and --adapter {adapter} differ in {key} ({first!r} and {value!r}): only "
                    "adapters of one base with equal settings can be combined"
                )
        if (Path(str(part.adapter_path)) / TRAINED).is_file():
            raise ConfigError(f"--adapter {adapter} contains {TRAINED}, which cannot be combined: merge it alone")
    return parts


def _merge_streamed(args: ModelArgs, out: Path, precision: str, **options: Any) -> Path:
    """Merge without loading the whole model; raises `Unstreamable` if that is not possible."""
    args = with_defaults(args)
    if args.from_scratch:
        raise Unstreamable("its weights were new ones, and none of the checkpoint's files")
    if not FAMILIES.find(args.type).is_complete(args):
        raise Unstreamable("the model is composed of a language model and a vision tower")
    if build_box_format(args).tokens:
        raise Unstreamable("tokens were added to the vocabulary")
    folder = local_checkpoint(args.model_name_or_path)
    hardware = replace(detect(), device=STORED, precision="bf16" if precision == "bf16" else "fp32")
    bundle = load_pretrained(replace(args, model_name_or_path=str(folder)), hardware)
    logger.info("merging %s into %s, shard by shard", args.adapter_path, folder)

    def reload(written: Path) -> Bundle:
        return load_pretrained(whole_model_args(str(written)), hardware)

    return write_streamed(bundle, out, base=folder, reload=reload, **options)


def local_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint; a name on the Hugging Face Hub is downloaded."""
    source = Path(find_checkpoint(name))
    if source.is_dir():
        return source
    with explained(name):
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))


def memory_needed(source: Path, itemsize: int, precision: str) -> int:
    """Return the bytes of the weights of a checkpoint in `precision`; 0 if it is not downloaded yet.

    `itemsize` is the number of bytes of one stored value.
    """
    stored = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    return stored * {"fp32": 4, "bf16": 2}[precision] // itemsize


def refuse_too_large(needed: int, memory: int, precision: str) -> None:
    """Raise `ConfigError` if weights do not fit into memory, because the system would kill the process silently."""
    if needed > memory:
        fix = "use --precision bf16, or a machine with more" if precision == "fp32" else "use a machine with more"
        raise ConfigError(
            f"merging in {precision} needs {needed / 1e9:.1f} GB of memory and this machine has {memory / 1e9:.1f} GB: "
            f"{fix}"
        )
