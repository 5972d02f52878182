"""Cuts a smaller model out of a Gemma 3n, as MatFormer nests them: nothing is trained, stock transformers loads it.

python mllm/pipeline/matformer.py --model google/gemma-3n-E4B-it --matformer E2.98B --out ckpt/gemma-3n-E2.98B-it
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline.command import command_parser, quiet_progress, run_command

logger = logging.getLogger("mllm.pipeline.matformer")


def main(argv: Sequence[str]) -> int:
    """Extracts as the command line says and prints where the model lies."""
    return run(parse(argv))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("matformer", "Cut a smaller model out of a Gemma 3n, without any training.")
    add_arguments(parser)
    parser.add_argument("--model", required=True, help="a Gemma 3n: a folder or a name on the Hub")
    parser.add_argument("--out", required=True, help="where the model goes: a folder that is empty or absent")
    return parser.parse_args(argv)


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """The options that say which slice it is; without any of them nothing is to be cut."""
    parser.add_argument("--matformer", metavar="PRESET", help="a published slice of E4B: E2B, E1.96B ... E3.79B")
    parser.add_argument(
        "--ffn-widths",
        metavar="WIDTHS",
        help="neurons of the feed-forward networks that are kept: one number for all layers, or one for each that is "
        "left, such as 16384x10,8192x20",
    )
    parser.add_argument("--drop-layers", metavar="LAYERS", help="layers to leave out, counted from 0, such as 20-24")


def run(arguments: argparse.Namespace) -> int:
    """Extracts what the parsed `arguments` ask for; raises `ConfigError` where they ask for nothing, or for two things.

    The model appears in `--out` when it is complete.
    """
    out = Path(arguments.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty; choose another folder")
    widths, dropped = parse_widths(arguments.ffn_widths or ""), parse_layers(arguments.drop_layers or "")
    if bool(arguments.matformer) == bool(widths or dropped):
        raise ConfigError(
            "name one slice: a published one with --matformer (such as E2B), or one of your own with --ffn-widths, "
            "--drop-layers or both"
        )
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    from mllm.files import replaced_folder, write_text
    from mllm.models.gemma3n.extract import extract, open_checkpoint
    from mllm.models.gemma3n.matformer import chosen_slice, preset_slice

    source, config = open_checkpoint(arguments.model)
    choice = preset_slice(arguments.matformer, config) if arguments.matformer else chosen_slice(config, widths, dropped)
    with replaced_folder(out) as temporary:
        extracted = extract(source, config, temporary, choice)
        write_text(temporary / "README.md", card(arguments.model, arguments.matformer, choice.layers, choice.widths))
    logger.info(
        "%d layers of %s neurons: %.3g of %.3g billion parameters are left",
        len(choice.layers),
        counted([f"{width:,}" for width in choice.widths]),
        extracted.after / 1e9,
        extracted.before / 1e9,
    )
    print(out)
    return 0


def parse_widths(text: str) -> list[int]:
    """`16384x2,8192` -> [16384, 16384, 8192]; raises `ConfigError` for anything else."""
    widths = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*(\d+)\s*(?:x\s*(\d+)\s*)?", part)
        if not match:
            raise ConfigError(f"--ffn-widths {text}: '{part}' is no width; write numbers such as 16384x10,8192x20")
        widths += [int(match[1])] * int(match[2] or 1)
    return widths


def parse_layers(text: str) -> list[int]:
    """`3,20-22` -> [3, 20, 21, 22]; raises `ConfigError` for anything else."""
    layers: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--drop-layers {text}: '{part}' is no layer; write numbers such as 3,20-24")
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return layers


def counted(items: Sequence[str]) -> str:
    """Neighbors that are equal, together: `16,384 (10 times), 8,192 (20 times)`."""
    runs: list[tuple[str, int]] = []
    for item in items:
        times = runs.pop()[1] if runs and runs[-1][0] == item else 0
        runs.append((item, times + 1))
    return ", ".join(item if times == 1 else f"{item} ({times} times)" for item, times in runs)


def card(base: str, preset: str | None, layers: Sequence[int], widths: Sequence[int]) -> str:
    """The README.md of the model: from what it was cut, and how."""
    header = ["library_name: transformers", "license: gemma", "license_link: https://ai.google.dev/gemma/terms"]
    if base.count("/") == 1 and not Path(base).exists():
        header.append(f"base_model: {base}")
    kept = f"It is the published slice {preset}." if preset else "It is a slice of one's own, not a published one."
    return "\n".join(
        [
            *("---", *header, "---", ""),
            f"# A MatFormer slice of {Path(base).name}",
            "",
            "**For research only; not for clinical use.** Changed from the original: layers and neurons were left out. "
            f"{kept} Nothing was trained, and nothing was measured.",
            "",
            f"* from: `{base}`",
            f"* layers kept, counted from 0: {', '.join(map(str, layers))}",
            f"* neurons of their feed-forward networks: {counted([f'{width:,}' for width in widths])}",
            "",
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; what is "
            "derived from it stays under them.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
