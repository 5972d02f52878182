"""Command `mllm export`: write a model, its vision tower, or a LoRA as GGUF files for llama.cpp and Ollama.

python mllm/pipeline/export.py --model exp/X/latest/adapter --format gguf --out answers.gguf --type q8_0
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline.command import command_parser, quiet_progress, run_command
from mllm.pipeline.slice_options import add_slice_options, is_slice, write_slice_of

FORMATS = ("gguf", "gguf-lora")


def main(argv: Sequence[str]) -> int:
    """Export the model of the command line, and print the files, their sizes and the command that runs them."""
    arguments = parse(argv)
    if is_slice(arguments):
        _refuse_gguf_options(arguments)
        print(write_slice_of(arguments))
        return 0
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("GGUF files need the package gguf, which is not installed: run pip install -e '.[gguf]'")
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    from mllm.export.gguf.export import export_gguf, export_lora, start_command

    out, mmproj = Path(arguments.out), Path(arguments.mmproj) if arguments.mmproj else None
    for option, path in (("--out", out), ("--mmproj", mmproj)):
        if path is not None and path.exists():
            raise ConfigError(f"{option} {path} exists; choose another name")
    if arguments.format == "gguf-lora":
        written = [export_lora(arguments.model, out, arguments.type or "f16", base=arguments.base)]
    else:
        kind = arguments.type or "q8_0"
        base, precision = arguments.base, arguments.precision
        written = export_gguf(arguments.model, out, kind, mmproj=mmproj, base=base, precision=precision)
    for path in written:
        print(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")
    print(f"start it with: {start_command(arguments.format, written)}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("export", "Write a model or an adapter as GGUF files, which llama.cpp and Ollama run.")
    parser.add_argument("--model", required=True, help="folder of a model or an adapter; an adapter is merged first")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="gguf",
        help="gguf (default): the whole language model; gguf-lora: only the adapter, to be applied to its base's GGUF",
    )
    parser.add_argument("--out", required=True, help="file to write; must not exist")
    parser.add_argument(
        "--type",
        help="type of the matrices: f32, f16, bf16, q8_0 (default), q5_1, q5_0, q4_1, q4_0, or, if llama.cpp is "
        "installed, q4_k_m and other K-quants; of an adapter: f32, f16 (default), bf16",
    )
    parser.add_argument("--mmproj", help="for Gemma 3 with images: a second file with the vision tower")
    parser.add_argument("--base", help="base model, if it is not the one that the adapter names")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="precision of the merge of an adapter: fp32 is exact, bf16 takes half the memory and rounds",
    )
    add_slice_options(parser.add_argument_group("a slice of a Gemma 3n, written as a model folder instead of GGUF"))
    return parser.parse_args(argv)


def _refuse_gguf_options(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` for options of GGUF files together with a slice."""
    for option in ("type", "mmproj", "base"):
        if vars(arguments)[option]:
            raise ConfigError(
                f"--{option} is for GGUF files, but a slice is written as a model folder: omit it, and export that "
                "folder with a second command"
            )


if __name__ == "__main__":
    sys.exit(run_command(main))
