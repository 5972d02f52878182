"""Writer of a MatFormer slice: widths and layers as text, the extraction, and the model card."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from mllm.errors import ConfigError
from mllm.files import replaced_folder, write_text
from mllm.models.gemma3n.extract import extract, open_checkpoint
from mllm.models.gemma3n.matformer import Slice, custom_slice, preset_slice
from mllm.run_files import CARD

logger = logging.getLogger(__name__)


def write_slice(model: str, out: Path, *, preset: str | None = None, widths: str = "", dropped: str = "") -> Path:
    """Write a slice of the Gemma 3n `model` (a folder or a name on the Hub) to the folder `out`, and return `out`.

    The slice is a published `preset`, or has the `widths` (such as `16384x10,8192x20`) without the `dropped` layers
    (such as `20-24`). Raises `ConfigError` if neither or both are set, and for a slice that does not exist.
    """
    width_list, dropped_list = parse_widths(widths), parse_layers(dropped)
    if bool(preset) == bool(width_list or dropped_list):
        raise ConfigError(
            "choose one slice: a published one with --matformer (such as E2B), or a custom one with --ffn-widths, "
            "--drop-layers or both"
        )
    source, config = open_checkpoint(model)
    choice = preset_slice(preset, config) if preset else custom_slice(config, width_list, dropped_list)
    with replaced_folder(out) as temporary:
        sizes = extract(source, config, temporary, choice)
        write_text(temporary / CARD, slice_card(model, preset, choice))
    logger.info(
        "%d layers of %s neurons: %.3g of %.3g billion parameters are left",
        len(choice.layers),
        run_lengths([f"{width:,}" for width in choice.widths]),
        sizes.after / 1e9,
        sizes.before / 1e9,
    )
    return out


def parse_widths(text: str) -> list[int]:
    """Return `16384x2,8192` as [16384, 16384, 8192]; raises `ConfigError` for other texts."""
    widths = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*(\d+)\s*(?:x\s*(\d+)\s*)?", part)
        if not match:
            raise ConfigError(f"--ffn-widths {text}: '{part}' is not a width; write numbers such as 16384x10,8192x20")
        widths += [int(match[1])] * int(match[2] or 1)
    return widths


def parse_layers(text: str) -> list[int]:
    """Return `3,20-22` as [3, 20, 21, 22]; raises `ConfigError` for other texts."""
    layers: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--drop-layers {text}: '{part}' is not a layer; write numbers such as 3,20-24")
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return layers


def run_lengths(items: Sequence[str]) -> str:
    """Return the items with equal neighbors combined: `16,384 (10 times), 8,192 (20 times)`."""
    runs: list[tuple[str, int]] = []
    for item in items:
        times = runs.pop()[1] if runs and runs[-1][0] == item else 0
        runs.append((item, times + 1))
    return ", ".join(item if times == 1 else f"{item} ({times} times)" for item, times in runs)


def slice_card(base: str, preset: str | None, choice: Slice) -> str:
    """Return the README.md of a slice of `base`."""
    header = ["library_name: transformers", "license: gemma", "license_link: https://ai.google.dev/gemma/terms"]
    if base.count("/") == 1 and not Path(base).exists():
        header.append(f"base_model: {base}")
    origin = f"It is the published slice {preset}." if preset else "It is a custom slice, not a published one."
    return "\n".join(
        [
            *("---", *header, "---", ""),
            f"# A MatFormer slice of {Path(base).name}",
            "",
            "**For research only; not for clinical use.** Modified from the original: layers and neurons were left "
            f"out. {origin} It was neither trained nor evaluated.",
            "",
            f"* base: `{base}`",
            f"* layers kept, counted from 0: {', '.join(map(str, choice.layers))}",
            "* neurons of their feed-forward networks: " + run_lengths([f"{width:,}" for width in choice.widths]),
            "",
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. They "
            "also apply to models derived from it.",
            "",
        ]
    )
