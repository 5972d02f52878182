"""Conversion of byte-pair merges to scores of pieces, which SentencePiece and llama.cpp use."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping

import numpy as np


def merge_scores(
    vocabulary: Mapping[str, int], merges: np.ndarray, specials: Collection[str]
) -> dict[str, float] | None:
    """Return a score for every merged piece, such that joining by scores and by merges gives equal tokens.

    `merges` contains the ids [merges, 2] of the joined pieces; `specials` are pieces that are matched as a whole and
    need no merge. Returns None if there are no such scores: if two pieces without a merge could be joined, or if the
    merges with one result are not consecutive.
    """
    pieces = {index: piece for piece, index in vocabulary.items()}
    pairs = zip(merges[:, 0].tolist(), merges[:, 1].tolist(), strict=True)
    results = np.fromiter((vocabulary[pieces[left] + pieces[right]] for left, right in pairs), np.int64, len(merges))
    order = results[np.diff(results, prepend=-1) != 0]
    if len(order) != len(np.unique(order)):
        return None
    size = max(pieces) + 1
    reachable = bytearray(size)
    for index in order.tolist():
        reachable[index] = 1
    for piece, index in vocabulary.items():
        reachable[index] |= len(piece) == 1
    possible = array("q")
    for piece in vocabulary:
        if len(piece) < 2 or piece in specials or _is_byte(piece):
            continue
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None and reachable[left] and reachable[right]:
                possible.append(left * size + right)
    if not np.isin(np.asarray(possible), merges[:, 0] * size + merges[:, 1]).all():
        return None
    return {pieces[index]: -float(rank) for rank, index in enumerate(order.tolist())}


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
