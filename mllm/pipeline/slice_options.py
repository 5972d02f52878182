"""Options of a MatFormer slice, shared by the commands `matformer` and `export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mllm.files import refuse_nonempty
from mllm.pipeline.command import quiet_progress


def add_slice_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that choose a slice. Without any of them, no slice is written."""
    parser.add_argument("--matformer", metavar="PRESET", help="a published slice of E4B: E2B, E1.96B ... E3.79B")
    parser.add_argument(
        "--ffn-widths",
        metavar="WIDTHS",
        help="neurons kept in the feed-forward networks: one number for all layers, or one for each remaining layer, "
        "such as 16384x10,8192x20",
    )
    parser.add_argument("--drop-layers", metavar="LAYERS", help="layers to leave out, counted from 0, such as 20-24")


def is_slice(arguments: argparse.Namespace) -> bool:
    """Return True if the command line chooses a slice."""
    return bool(arguments.matformer or arguments.ffn_widths or arguments.drop_layers)


def write_slice_of(arguments: argparse.Namespace) -> Path:
    """Write the slice that the command line chooses, and return its folder; see `write_slice`."""
    out = Path(arguments.out)
    refuse_nonempty(out)
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    from mllm.models.gemma3n.slicing import write_slice

    return write_slice(
        arguments.model,
        out,
        preset=arguments.matformer,
        widths=arguments.ffn_widths or "",
        dropped=arguments.drop_layers or "",
    )
