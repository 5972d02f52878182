"""Different texts of many answers, such as classes or labels, in a few bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from mllm.metrics.parts import hash_of

NAMED = 1000
"""Maximum number of texts that are kept."""
_RECENT = 20_000
"""Maximum number of texts whose hashes are kept, so that a repeated text is not hashed again."""
_MERGED = 100_000
"""Number of new hashes from which they are merged with the known ones."""


class DistinctTexts(Collection[str]):
    """Different texts, numbered from 0 in the order in which they were added, in 16 bytes each.

    They are compared by hashes of 64 bits. The first `NAMED` texts are kept, too.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._hashes, self._numbers = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        """Hashes of the texts in increasing order, and their numbers."""
        self._new, self._recent = array("Q"), dict[str, int]()
        self._names: dict[str, int] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> int:
        """Add a text and return its hash."""
        key = self._recent.get(text)
        if key is None:
            if len(self._recent) == _RECENT:
                self._recent = {}
            key = self._recent[text] = hash_of(text)
            self._new.append(key)
            if len(self._names) < NAMED:
                self._names.setdefault(text, len(self._names))
            if len(self._new) > max(_MERGED, len(self._hashes)):
                self._merge()
        return key

    def __len__(self) -> int:
        self._merge()
        return len(self._hashes)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and int(self.numbers_of([text])[0]) < len(self)

    def __iter__(self) -> Iterator[str]:
        """Yield the texts in the order of their numbers; they must be at most `NAMED`."""
        assert len(self) <= NAMED
        return iter(self._names)

    def numbers(self, hashes: np.ndarray) -> np.ndarray:
        """Return the numbers of the texts with some hashes, [N]; for others, the number of texts."""
        count = len(self)
        places = np.searchsorted(self._hashes, hashes)
        is_known = np.append(self._hashes, np.uint64(0))[places] == hashes
        return np.where(is_known & (places < count), np.append(self._numbers, count)[places], count)

    def numbers_of(self, texts: Sequence[str]) -> np.ndarray:
        """Return the numbers of texts, [N]; for others, the number of texts."""
        count = len(self)
        if count <= NAMED:
            return np.fromiter((self._names.get(text, count) for text in texts), np.int64, len(texts))
        return self.numbers(np.fromiter(map(hash_of, texts), np.uint64, len(texts)))

    def _merge(self) -> None:
        if not self._new:
            return
        added, first = np.unique(np.array(self._new, np.uint64), return_index=True)
        self._new = array("Q")
        is_fresh = ~np.isin(added, self._hashes)
        fresh = added[is_fresh][np.argsort(first[is_fresh])]
        hashes = np.concatenate([self._hashes, fresh])
        numbers = np.concatenate([self._numbers, len(self._hashes) + np.arange(len(fresh))])
        order = np.argsort(hashes)
        self._hashes, self._numbers = hashes[order], numbers[order]
