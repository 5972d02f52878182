"""Whether byte-pair merges say the same as scores of pieces, by which SentencePiece and llama.cpp join them."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping

import numpy as np


def merge_scores(
    vocabulary: Mapping[str, int], merges: np.ndarray, specials: Collection[str]
) -> dict[str, float] | None:
    """A score for every piece that merges make, such that joining by score and by merges give the same pieces.

    None where there is no such score: where pieces could be joined that no merge joins, or where the merges that make
    one piece do not follow each other. `merges` are ids [merges, 2] of the pieces that are joined, `specials` pieces
    that stand in texts whole, and need no merge.
    """
    pieces = {index: piece for piece, index in vocabulary.items()}
    pairs = zip(merges[:, 0].tolist(), merges[:, 1].tolist(), strict=True)
    made = np.fromiter((vocabulary[pieces[left] + pieces[right]] for left, right in pairs), np.int64, len(merges))
    order = made[np.diff(made, prepend=-1) != 0]
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
