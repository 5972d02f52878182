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

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline import command_parser, quiet_progress, run_command

logger = logging.getLogger("mllm.pipeline.merge")


def main(argv: Sequence[str]) -> int:
    """Merges as the command line says and prints where the model lies."""
    arguments = parse(argv)
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    print(merge(arguments.adapter, arguments.out, base=arguments.base, precision=arguments.precision))
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
        help="what is computed with: fp32 is exact and takes 4 bytes a parameter of memory, bf16 takes 2 and rounds",
    )
    return parser.parse_args(argv)


def merge(
    adapter: str, out: str | Path, *, base: str | None = None, precision: str = "fp32", replaces: bool = False
) -> Path:
    """Merges the adapter in the machine's memory and writes a model in the checkpoint's own dtype to `out`.

    Merging and the comparison of logits run in `precision`, on the CPU, whatever the adapter was trained with. Raises
    `ConfigError` where `out` holds something already, unless it `replaces` it, or where the base exists in quantized
    form alone.
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
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    refuse_too_large(memory_needed(Path(source), dtype.itemsize, precision), detect().host_memory, precision)
    logger.info("merging %s into %s in %s", model_args.adapter_path, source, precision)
    hardware = replace(detect(), device="cpu", precision="bf16" if precision == "bf16" else "fp32")
    bundle = load_pretrained(model_args, hardware)
    facts = Facts(base=model_args.model_name_or_path, training={"adapter": adapter, "merged in": precision})
    write = EXPORTERS.find("merged")
    return Path(write(bundle, out, settings=asdict(model_args), facts=facts, dtype=dtype))


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
