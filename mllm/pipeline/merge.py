"""Folds an adapter into its full-precision base and checks that both say the same.

python mllm/pipeline/merge.py --adapter exp/X/latest/adapter --out merged/
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline import command_parser, quiet_progress, run_command

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
    written = merge(
        arguments.adapter,
        arguments.out,
        base=arguments.base,
        precision=arguments.precision,
        parity=not arguments.skip_parity,
    )
    print(written)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("merge", "Fold an adapter into its full-precision base model.")
    parser.add_argument("--adapter", required=True, help="an adapter/ folder, or the run folder around it")
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
) -> Path:
    """Merges the adapter, shard by shard where the base's files allow it, and writes a model in their dtypes to `out`.

    Adapters of 4-bit and 8-bit runs are folded into the base in full precision. What is checked is written to
    `export_report.json`. Raises `ConfigError` where `out` holds something already, unless it `replaces` it, or where
    the base exists in quantized form alone.
    """
    out = Path(out)
    if not replaces and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty; choose another folder")

    import torch

    import mllm.export  # noqa: F401
    from mllm.config.hardware import detect
    from mllm.export.card import Facts
    from mllm.models.builder.builder import load_pretrained
    from mllm.models.loading import find_checkpoint, load_config
    from mllm.models.stored_weights import Unstreamable
    from mllm.pipeline.inference import adapter_args
    from mllm.registry import EXPORTERS

    model_args = adapter_args(adapter, base)
    source = find_checkpoint(model_args.model_name_or_path)
    config = load_config(source)
    if "quantization_config" in config.to_dict():
        raise ConfigError(
            f"'{source}' holds quantized weights alone, and merging needs full precision; "
            "name the full-precision checkpoint with --base"
        )
    facts = Facts(base=model_args.model_name_or_path, training={"adapter": adapter, "merged in": precision})
    given: dict[str, Any] = dict(settings=asdict(model_args), facts=facts, parity=parity)
    told: dict[str, Any] = {"adapters": [adapter]}
    try:
        return _streamed(model_args, out, precision, told=told, **given)
    except Unstreamable as reason:
        logger.info("the whole model is loaded: %s", reason)
        told["in_memory_because"] = str(reason)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    refuse_too_large(memory_needed(Path(source), dtype.itemsize, precision), detect().host_memory, precision)
    logger.info("merging %s into %s in %s", model_args.adapter_path, source, precision)
    hardware = replace(detect(), device="cpu", precision="bf16" if precision == "bf16" else "fp32")
    bundle = load_pretrained(model_args, hardware)
    return Path(EXPORTERS.find("merged")(bundle, out, dtype=dtype, told=told, **given))


def _streamed(model_args: ModelArgs, out: Path, precision: str, **given: Any) -> Path:
    """Merges without ever holding the model in memory; raises `Unstreamable` where that cannot be."""
    from mllm.config.defaults import with_defaults
    from mllm.config.hardware import detect
    from mllm.export.merged import write_streamed
    from mllm.models.builder.build_shared import chosen_format
    from mllm.models.builder.builder import load_pretrained
    from mllm.models.stored_weights import STORED, Unstreamable
    from mllm.pipeline.inference import whole_model_args

    if model_args.vision_tower is not None:
        raise Unstreamable("the model is composed of a language model and a vision tower")
    if chosen_format(with_defaults(model_args)).tokens:
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

    from mllm.models.loading import explained, find_checkpoint

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
