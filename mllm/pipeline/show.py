"""Shows what there is: the registries, a config as it is resolved, a sample as the model reads it.

python mllm/pipeline/show.py registries
python mllm/pipeline/show.py config config/training_configs/X.py [--cfg-options a.b=c ...]
python mllm/pipeline/show.py sample config/training_configs/X.py [--split train] [--index 0] [--tiny]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError, hint
from mllm.pipeline.command import command_parser, quiet_progress, run_command
from mllm.structures import IGNORE, Encoded

SUPERVISED, IMAGE_TOKENS, PLAIN = "\033[1;32m", "\033[36m", "\033[0m"
"""Terminal colors (ECMA-48): green and bold, cyan, none."""


def main(argv: Sequence[str]) -> int:
    """Prints what the command line asks for."""
    arguments = parse(argv)
    if arguments.what == "registries":
        print(registries())
    elif arguments.what == "config":
        print(resolved(arguments), end="")
    else:
        print(sample(arguments))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("show", "Show registries, a resolved config, or an encoded sample.")
    what = parser.add_subparsers(dest="what", required=True, metavar="{registries,config,sample}")
    what.add_parser("registries", help="every name that a config can use, with one sentence")
    config = what.add_parser("config", help="the config as a run would write it into its folder")
    one = what.add_parser("sample", help="one sample as tokens, supervised ones in green")
    for each in (config, one):
        each.add_argument("config", help="a config file")
        each.add_argument("--tiny", action="store_true", help="replace checkpoints and absent data by tiny ones")
        each.add_argument(
            "--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys"
        )
    one.add_argument("--split", default="train", help="train, validation or test")
    one.add_argument("--index", type=int, default=0, help="which row, from 0; negative ones count from the end")
    return parser.parse_args(argv)


def registries() -> str:
    """Every registry with its sentence, and every entry with the first line of its docstring."""
    from mllm.config.hardware import check_packages
    from mllm.registry import ALL

    check_packages()
    blocks = []
    for registry in ALL:
        lines = [f"{registry.name.upper()}  {registry.sentence}"]
        lines += [f"  {name:22} {registry.describe(name).summary}".rstrip() for name in registry.names()]
        blocks.append("\n".join(lines if len(lines) > 1 else [*lines, "  (none)"]))
    return "\n\n".join(blocks)


def resolved(arguments: argparse.Namespace) -> str:
    """The config with its bases, defaults, overrides and rules applied, as runnable Python."""
    quiet_progress()
    from mllm.run.prepare import prepare_args

    return prepare_args(arguments.config, arguments.cfg_options, tiny=arguments.tiny)[0].text


def sample(arguments: argparse.Namespace) -> str:
    """One sample of a config's dataset as its model reads it; no weights are loaded."""
    quiet_progress()
    from mllm.dataset.builder import build_datasets
    from mllm.models.builder.build_encoder import load_encoder
    from mllm.run.prepare import prepare_args

    config, _ = prepare_args(arguments.config, arguments.cfg_options, tiny=arguments.tiny)
    splits = build_datasets(config.data_args, seed=config.training_args.get("seed", 42))
    if arguments.split not in splits:
        raise ConfigError(f"the config has no split '{arguments.split}'{hint(arguments.split, splits)}")
    dataset = splits[arguments.split]
    if not -len(dataset) <= arguments.index < len(dataset):
        raise ConfigError(f"--index {arguments.index}: the split '{arguments.split}' has {len(dataset)} samples")
    encoder = load_encoder(config.model_args)
    encoded = encoder.encode(dataset.sample(arguments.index % len(dataset)))
    return described(encoded, encoder.tokenizer, encoder.processor.image_token_ids, sys.stdout.isatty())


def described(encoded: Encoded, tokenizer: Any, image_ids: Collection[int | None], color: bool) -> str:
    """An encoded sample for reading: its place, tokens as text with labels in color, what is supervised, shapes.

    Runs of image tokens are collapsed to `<image x 256>`.
    """
    pairs = list(zip(encoded.student["input_ids"].tolist(), encoded.targets["labels"].tolist(), strict=True))
    text, answers = "", []
    for kind, group in groupby(pairs, lambda pair: (pair[0] in image_ids, pair[1] != IGNORE)):
        tokens = [token for token, _ in group]
        shown = f"<image x {len(tokens)}>" if kind[0] else tokenizer.decode(tokens)
        hue = SUPERVISED if kind[1] else IMAGE_TOKENS if kind[0] else ""
        text += f"{hue}{shown}{PLAIN}" if color and hue else shown
        answers += [shown] if kind[1] else []
    supervised = sum(label != IGNORE for _, label in pairs)
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in encoded.student.items())
    return "\n".join(
        [
            f"{encoded.source or 'a sample'}: {len(pairs)} tokens, {supervised} supervised",
            f"tensors: {shapes}",
            "",
            text,
            "",
            *(f"supervised: {answer!r}" for answer in answers),
        ]
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
