"""Whether byte-pair merges say the same as scores of pieces, by which SentencePiece and llama.cpp join them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby


def merge_scores(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, ...]], specials: Collection[str]
) -> dict[str, float] | None:
    """A score for every piece that merges make, such that joining by score and by merges give the same pieces.

    None where there is no such score: where pieces could be joined that no merge joins, or where the merges that make
    one piece do not follow each other. `specials` are pieces that stand in texts whole, and need no merge.
    """
    made = [left + right for left, right in merges]
    order = [piece for piece, _ in groupby(made)]
    if len(order) != len(set(order)):
        return None
    joins = set(merges)
    reachable = {piece for piece in vocabulary if len(piece) == 1} | set(order)
    for piece in vocabulary:
        if len(piece) < 2 or piece in specials or _is_byte(piece):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in reachable and right in reachable and (left, right) not in joins:
                return None
    return {piece: -float(rank) for rank, piece in enumerate(order)}


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
