"""An encoded sample as text."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

from mllm.contents import measure_value
from mllm.protocols import Encoder
from mllm.structures import IGNORE, Encoded

SUPERVISED, IMAGE_TOKENS, PLAIN = "\033[1;32m", "\033[36m", "\033[0m"
"""Terminal colors (ECMA-48): bold green, cyan, none."""


def describe_sample(encoded: Encoded, encoder: Encoder, color: bool) -> str:
    """Return the origin, the tensor shapes and the contents of an encoded sample as text.

    For a model that reads text, these are the tokens, with `color` supervised ones in green, and each supervised part;
    an encoder-decoder has tokens of the source and of the target. For a vision model, these are views and measures.
    """
    origin = encoded.source or "a sample"
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in encoded.student.items())
    if encoder.views:
        views = ", ".join(encoder.views)
        return "\n".join([f"{origin}: views {views}", f"tensors: {shapes}", "", *_measure_lines(encoded, encoder)])
    labels = encoded.targets["labels"].tolist()
    source = encoded.student["input_ids"].tolist()
    sequences = {"": (source, labels)}
    if "decoder_input_ids" in encoded.student:
        target = encoded.student["decoder_input_ids"].tolist()
        sequences = {"source: ": (source, [IGNORE] * len(source)), "target: ": (target, labels)}
    lines: list[str] = []
    supervised: list[str] = []
    for title, (ids, targets) in sequences.items():
        text, parts = _marked_text(ids, targets, encoder.tokenizer, encoder.image_token_ids, color)
        lines += [title + text, ""]
        supervised += parts
    tokens, count = sum(len(ids) for ids, _ in sequences.values()), sum(label != IGNORE for label in labels)
    return "\n".join(
        [
            f"{origin}: {tokens} tokens, {count} supervised",
            f"tensors: {shapes}",
            "",
            *lines,
            *(f"supervised: {part!r}" for part in supervised),
        ]
    )


def _measure_lines(encoded: Encoded, encoder: Encoder) -> list[str]:
    """Return one line for each measure: `EF: 55.3 %`, or `EF: unknown`."""
    values, known = encoded.targets["measures"].tolist(), encoded.targets["measures_known"].tolist()
    return [
        f"{name}: {measure_value(name, value if is_known else math.nan)}"
        for name, value, is_known in zip(encoder.measures, values, known, strict=True)
    ]


def _marked_text(
    ids: Sequence[int], labels: Sequence[int], tokenizer: Any, image_ids: Collection[int], color: bool
) -> tuple[str, list[str]]:
    """Return tokens as text, image tokens as `<image x 256>`, and the supervised parts of the text."""
    text, parts = "", []
    pairs = zip(ids, labels, strict=True)
    for (is_image, is_supervised), group in groupby(pairs, lambda pair: (pair[0] in image_ids, pair[1] != IGNORE)):
        tokens = [token for token, _ in group]
        part = f"<image x {len(tokens)}>" if is_image else str(tokenizer.decode(tokens))
        hue = SUPERVISED if is_supervised else IMAGE_TOKENS if is_image else ""
        text += f"{hue}{part}{PLAIN}" if color and hue else part
        parts += [part] if is_supervised else []
    return text, parts
