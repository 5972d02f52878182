"""Converts a checkpoint in the layout of the original LLaVA 1.5 or Shikra to one that stock transformers loads.

python mllm/pipeline/convert.py --model shikra-7b/ --vision-tower openai/clip-vit-large-patch14 --out ckpt/shikra-7b
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline.command import command_parser, quiet_progress, run_command


def main(argv: Sequence[str]) -> int:
    """Converts as the command line says and prints where the model lies."""
    arguments = parse(argv)
    out = Path(arguments.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty; choose another folder")
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    from mllm.models.shikra.convert import convert

    print(convert(arguments.model, out, arguments.vision_tower))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("convert", "Convert an original LLaVA 1.5 or Shikra checkpoint to transformers' layout.")
    parser.add_argument("--model", required=True, help="the original checkpoint's folder; no delta")
    parser.add_argument("--vision-tower", help="the CLIP it was trained with: a folder or a name on the Hub")
    parser.add_argument("--out", required=True, help="where the model goes: a folder that is empty or absent")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
