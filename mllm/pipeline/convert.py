"""Command `mllm convert`: convert an original LLaVA 1.5 or Shikra checkpoint to the layout of stock transformers.

python mllm/pipeline/convert.py --model shikra-7b/ --vision-tower openai/clip-vit-large-patch14 --out ckpt/shikra-7b
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.files import refuse_nonempty
from mllm.pipeline.command import command_parser, quiet_progress, run_command


def main(argv: Sequence[str]) -> int:
    """Convert the checkpoint of the command line and print the folder of the model."""
    arguments = parse(argv)
    out = Path(arguments.out)
    refuse_nonempty(out)
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    from mllm.models.shikra.convert import convert

    print(convert(arguments.model, out, arguments.vision_tower))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("convert", "Convert an original LLaVA 1.5 or Shikra checkpoint to transformers' layout.")
    parser.add_argument("--model", required=True, help="folder of the original checkpoint; not of a delta")
    parser.add_argument("--vision-tower", help="the CLIP of its training: a folder or a name on the Hub")
    parser.add_argument("--out", required=True, help="folder of the converted model; empty or absent")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
