"""Command `mllm convert`: convert weights between the layout of stock transformers and other layouts.

python mllm/pipeline/convert.py --model shikra-7b/ --vision-tower openai/clip-vit-large-patch14 --out ckpt/shikra-7b
python mllm/pipeline/convert.py --from flax --model t5gemma-b-b-it/ --tokenizer tokenizer.model --it --out ckpt/t5gemma
python mllm/pipeline/convert.py --to flax --model exp/X/latest/merged --tokenizer ckpt/t5gemma --out t5gemma-flax/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.files import refuse_nonempty
from mllm.pipeline.command import command_parser, quiet_progress, run_command

LLAVA, FLAX = "llava", "flax"
OPTIONS_OF = {
    (LLAVA, None): {"vision_tower"},
    (FLAX, None): {"size", "tokenizer", "instruction_tuned"},
    (None, FLAX): {"size", "tokenizer"},
}
"""Options of each direction, given as the layouts of `--from` and `--to`; None is that of transformers."""


def main(argv: Sequence[str]) -> int:
    """Convert the checkpoint of the command line and print the folder of the model."""
    arguments = parse(argv)
    direction = _direction(arguments)
    options = {
        name: getattr(arguments, name) for name in sorted(OPTIONS_OF[direction]) if getattr(arguments, name) is not None
    }
    out = Path(arguments.out)
    refuse_nonempty(out)
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    if direction == (LLAVA, None):
        from mllm.models.shikra.convert import convert

        print(convert(arguments.model, out, **options))
    elif direction == (FLAX, None):
        from mllm.models.t5gemma.from_flax import convert_from_flax

        print(convert_from_flax(arguments.model, out, **options))
    else:
        from mllm.models.t5gemma.to_flax import convert_to_flax

        print(convert_to_flax(arguments.model, out, **options))
    return 0


def _direction(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    """Return the layouts of `--from` and `--to`. Raise `ConfigError` for options of another direction."""
    direction = (arguments.source_layout or (None if arguments.target_layout else LLAVA), arguments.target_layout)
    if direction not in OPTIONS_OF:
        raise ConfigError("--from and --to exclude each other: the other layout is always that of transformers")
    for name in sorted(set().union(*OPTIONS_OF.values()) - OPTIONS_OF[direction]):
        if getattr(arguments, name) is not None:
            option = "--it" if name == "instruction_tuned" else "--" + name.replace("_", "-")
            kind = f"--to {direction[1]}" if direction[1] else f"--from {direction[0]}"
            raise ConfigError(f"{option} does not apply to {kind}")
    return direction


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("convert", "Convert weights between the layout of transformers and other layouts.")
    parser.add_argument(
        "--from",
        dest="source_layout",
        choices=(LLAVA, FLAX),
        help="layout of --model: that of LLaVA 1.5 and Shikra (default), or of T5Gemma in Flax (package gemma)",
    )
    parser.add_argument("--to", dest="target_layout", choices=(FLAX,), help="convert a T5Gemma of transformers to Flax")
    parser.add_argument("--model", required=True, help="folder of the checkpoint; not of a delta or an adapter")
    parser.add_argument("--out", required=True, help="folder of the converted model; empty or absent")
    parser.add_argument("--vision-tower", help="for llava, the CLIP of its training: a folder or a name on the Hub")
    parser.add_argument(
        "--tokenizer",
        help="for flax, Gemma's tokenizer.model or a folder that contains it (default: that of --model); with --from "
        "also a name of T5Gemma on the Hub",
    )
    parser.add_argument("--size", help="for flax, the published size that --model must have, such as b-b or 9b-2b")
    parser.add_argument(
        "--it",
        dest="instruction_tuned",
        action="store_true",
        default=None,
        help="with --from flax: the checkpoint is instruction-tuned, so the tokenizer gets Gemma's chat template",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
