"""Folds an adapter into its full-precision base and checks that both say the same.

python mllm/pipeline/merge.py --adapter exp/X/latest/adapter --out merged/
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline.command import command_parser, quiet_progress, run_command

if TYPE_CHECKING:
    from mllm.config.schema import ModelArgs
    from mllm.structures import Bundle

logger = logging.getLogger("mllm.pipeline.merge")


def main(argv: Sequence[str]) -> int:
    """Merges as the command line says and prints where the model lies."""
    arguments = parse(argv)
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    given: dict[str, Any] = dict(base=arguments.base, precision=arguments.precision, parity=not arguments.skip_parity)
    if len(arguments.adapter) == 1 and arguments.weights is None:
        print(merge(arguments.adapter[0], arguments.out, **given))
    else:
        print(
            merge_several(
                arguments.adapter,
                arguments.out,
                weights=arguments.weights,
                combination=arguments.combination,
                density=arguments.density,
                **given,
            )
        )
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("merge", "Fold an adapter into its full-precision base model.")
    parser.add_argument(
        "--adapter",
        required=True,
        action="append",
        help="an adapter/ folder, or the run folder around it; given several times, the adapters are combined",
    )
    parser.add_argument("--weights", type=float, nargs="+", help="one number for each adapter; 1 each unless given")
    parser.add_argument(
        "--combination",
        default="cat",
        choices=("cat", "linear", "ties", "dare_linear", "dare_ties"),
        help="how several adapters become one: cat is their exact weighted sum, the others approximate it (PEFT)",
    )
    parser.add_argument("--density", type=float, help="for ties and dare: the share of each adapter's numbers to keep")
    parser.add_argument("--out", required=True, help="where the merged model goes: a folder that is empty or absent")
    parser.add_argument("--base", help="the base model, where it is not the one that the adapter names")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="what merged and unmerged model are compared in; folding itself is always done in fp32, unless the whole "
        "model has to be loaded: then bf16 takes half the memory and rounds",
    )
    parser.add_argument(
        "--skip-parity",
        action="store_true",
        help="do not compare the merged model's logits with the adapter's; export_report.json then says so",
    )
    return parser.parse_args(argv)


def merge(
    adapter: str,
    out: str | Path,
    *,
    base: str | None = None,
    precision: str = "fp32",
    replaces: bool = False,
    parity: bool = True,
    told: Mapping[str, Any] | None = None,
) -> Path:
    """Merges the adapter, shard by shard where the base's files allow it, and writes a model in their dtypes to `out`.

    Adapters of 4-bit and 8-bit runs are folded into the base in full precision. What is checked is written to
    `export_report.json`, and so is what is `told`. Raises `ConfigError` where `out` holds something already, unless it
    `replaces` it, or where the base exists in quantized form alone.
    """
    out = Path(out)
    if not replaces:
        refuse_filled(out)

    import torch

    import mllm.export  # noqa: F401
    from mllm.config.hardware import detect
    from mllm.export.card import facts_of
    from mllm.models.backbone.loading import find_checkpoint, load_config
    from mllm.models.backbone.streamed import Unstreamable
    from mllm.models.builder.builder import load_pretrained
    from mllm.predict.load import adapter_args
    from mllm.registry import EXPORTERS

    model_args = adapter_args(adapter, base)
    source = find_checkpoint(model_args.model_name_or_path)
    config = load_config(source)
    if "quantization_config" in config.to_dict():
        raise ConfigError(
            f"'{source}' holds quantized weights alone, and merging needs full precision; "
            "name the full-precision checkpoint with --base"
        )
    told = {"adapters": [adapter], **(told or {})}
    card = Path(str(model_args.adapter_path)) / "README.md"
    facts = facts_of(card.read_text(encoding="utf-8") if card.is_file() else "", model_args.model_name_or_path)
    merged = {key: value for key, value in told.items() if key != "adapters"}
    merged["merged adapters"] = len(told["adapters"])
    facts = replace(facts, training={**facts.training, **merged})
    given: dict[str, Any] = dict(settings=asdict(model_args), facts=facts, parity=parity)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    if model_args.part is not None:
        bundle = load_pretrained(model_args, replace(detect(), device="cpu", precision="fp32"))
        return Path(EXPORTERS.find("student")(bundle, out, dtype=dtype, settings=asdict(model_args), facts=facts))
    try:
        return _streamed(model_args, out, precision, told=told, **given)
    except Unstreamable as reason:
        logger.info("the whole model is loaded: %s", reason)
        told["in_memory_because"] = str(reason)
    refuse_too_large(memory_needed(Path(source), dtype.itemsize, precision), detect().host_memory, precision)
    logger.info("merging %s into %s in %s", model_args.adapter_path, source, precision)
    hardware = replace(detect(), device="cpu", precision="bf16" if precision == "bf16" else "fp32")
    bundle = load_pretrained(model_args, hardware)
    return Path(EXPORTERS.find("merged")(bundle, out, dtype=dtype, told=told, **given))


def merge_several(
    adapters: Sequence[str],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    combination: str = "cat",
    density: float | None = None,
    base: str | None = None,
    **given: Any,
) -> Path:
    """Merges the weighted combination of several adapters of one base; `given` is for `merge`.

    Raises `ConfigError` where they belong to several bases, encode samples differently, or have heads or a projector.
    """
    from mllm.config.hardware import detect
    from mllm.export.settings import write_settings
    from mllm.models.adapters.combine import check_combination, combined
    from mllm.models.adapters.files import HEADS, read_adapter, write_adapter
    from mllm.models.backbone.streamed import STORED, Unstreamable
    from mllm.models.builder.builder import load_pretrained
    from mllm.predict.load import adapter_args

    check_combination(len(adapters), weights, combination, density)
    refuse_filled(Path(out))
    parts = [adapter_args(adapter, base) for adapter in adapters]
    for adapter, part in zip(adapters, parts, strict=True):
        for key, value in asdict(part).items():
            if key != "adapter_path" and value != (first := vars(parts[0])[key]):
                raise ConfigError(
                    f"--adapter {adapters[0]} and --adapter {adapter} differ in {key} ({first!r} and {value!r}): only "
                    "adapters of one base that encode alike can be combined"
                )
        if (Path(str(part.adapter_path)) / HEADS).is_file():
            raise ConfigError(f"--adapter {adapter} holds {HEADS}, which cannot be combined: merge it alone")
    folder = local_checkpoint(parts[0].model_name_or_path)
    bare = replace(parts[0], model_name_or_path=str(folder), adapter_path=None)
    try:
        model = load_pretrained(bare, replace(detect(), device=STORED, precision="fp32")).model.pretrained
    except Unstreamable as reason:
        raise ConfigError(
            f"several adapters can only be merged shard by shard, but {reason}: merge one alone"
        ) from None
    weights = list(weights or [1.0] * len(adapters))
    saved = [read_adapter(str(part.adapter_path)) for part in parts]
    result = combined(model, saved, weights, combination=combination, density=density)
    told = {
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
        return merge(temporary, out, base=base, told=told, **given)


def refuse_filled(out: Path) -> None:
    """Refuses to write where something lies."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty; choose another folder")


def _streamed(model_args: ModelArgs, out: Path, precision: str, **given: Any) -> Path:
    """Merges without ever holding the model in memory; raises `Unstreamable` where that cannot be."""
    from mllm.config.defaults import with_defaults
    from mllm.config.hardware import detect
    from mllm.export.merged import write_streamed
    from mllm.family import FAMILIES
    from mllm.models.backbone.streamed import STORED, Unstreamable
    from mllm.models.builder.build_chat import build_box_format
    from mllm.models.builder.builder import load_pretrained
    from mllm.predict.load import whole_model_args

    model_args = with_defaults(model_args)
    if not FAMILIES.find(model_args.type).is_complete(model_args):
        raise Unstreamable("the model is composed of a language model and a vision tower")
    if build_box_format(model_args).tokens:
        raise Unstreamable("tokens were added to the vocabulary")
    folder = local_checkpoint(model_args.model_name_or_path)
    hardware = replace(detect(), device=STORED, precision="bf16" if precision == "bf16" else "fp32")
    bundle = load_pretrained(replace(model_args, model_name_or_path=str(folder)), hardware)
    logger.info("merging %s into %s, shard by shard", model_args.adapter_path, folder)

    def reload(written: Path) -> Bundle:
        return load_pretrained(whole_model_args(str(written)), hardware)

    return write_streamed(bundle, out, base=folder, reload=reload, **given)


def local_checkpoint(name: str) -> Path:
    """The folder of a checkpoint, fetched from the Hugging Face Hub where `name` is one there."""
    from huggingface_hub import snapshot_download

    from mllm.models.backbone.loading import explained, find_checkpoint

    source = Path(find_checkpoint(name))
    if source.is_dir():
        return source
    with explained(name):
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))


def memory_needed(source: Path, itemsize: int, precision: str) -> int:
    """Bytes that a checkpoint's weights take in `precision`; 0 where it is not on this machine yet."""
    stored = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    return stored * {"fp32": 4, "bf16": 2}[precision] // itemsize


def refuse_too_large(needed: int, memory: int, precision: str) -> None:
    """Refuses weights that this machine's memory cannot hold: the system would kill the process without a word."""
    if needed > memory:
        remedy = "use --precision bf16, or a machine with more" if precision == "fp32" else "use a machine with more"
        raise ConfigError(
            f"merging in {precision} needs {needed / 1e9:.1f} GB of memory and this machine has {memory / 1e9:.1f} GB: "
            f"{remedy}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
