"""Indices of rows: negative indices, and random selections."""

from __future__ import annotations

import numpy as np

from mllm.errors import ConfigError


def from_zero(index: int, count: int) -> int:
    """Return an index that may be negative as an index from 0.

    Raises:
        IndexError: The index is out of range for `count` rows.
    """
    if not -count <= index < count:
        raise IndexError(f"index {index} is out of range for {count} rows")
    return int(index) % count


def generator(*seed: int) -> np.random.Generator:
    """Return `np.random.default_rng(seed)`, in two thirds of the time if all numbers have 32 bits."""
    return np.random.default_rng(np.array(seed, np.uint32) if 0 <= min(seed) <= max(seed) < 1 << 32 else seed)


class RowGenerators:
    """Random generators of the rows of a table: those of `generator(seed, epoch, index, 1)`.

    Creating a generator takes a third of the time of the check of a row with a question from a template. If rows are
    read one after another, the states of a block of them are computed together, and one generator gets them in turn.
    """

    _BLOCK = 1024

    def __init__(self) -> None:
        self._bits = np.random.PCG64(0)
        self._generator = np.random.Generator(self._bits)
        self._block: tuple[int, int, int] | None = None
        """Seed, epoch and number of the block whose states are known."""
        self._states: list[tuple[int, int]] = []
        self._last = -2

    def of(self, seed: int, epoch: int, index: int) -> np.random.Generator:
        """Return the generator of a row. It is valid until the next call."""
        is_next, self._last = index == self._last + 1, index
        if not (is_next and min(seed, epoch) >= 0 and max(seed, epoch, index) < 1 << 31):
            return generator(seed, epoch, index, 1)
        number, place = divmod(index, self._BLOCK)
        if self._block != (seed, epoch, number):
            self._block = (seed, epoch, number)
            self._states = pcg64_states(seed, epoch, np.arange(number * self._BLOCK, (number + 1) * self._BLOCK))
        state, step = self._states[place]
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": step},
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._generator


def pcg64_states(seed: int, epoch: int, indices: np.ndarray) -> list[tuple[int, int]]:
    """Return state and increment of `np.random.PCG64(np.random.SeedSequence([seed, epoch, index, 1]))` for each index.

    NumPy guarantees both algorithms (NEP 19): the hash of `SeedSequence` (Melissa O'Neill, "Developing a seed_seq
    Alternative") over a pool of four words, and the seeding of PCG64.

    Args:
        seed, epoch: Numbers below 2**32.
        indices: Integers below 2**32, [N].
    """
    pool = [np.full(len(indices), number, np.uint32) for number in (seed, epoch, 0, 1)]
    pool[2] = indices.astype(np.uint32)
    constant = 0x43B0D7E5
    for number in range(4):
        pool[number], constant = _hash(pool[number], constant, 0x931E8875)
    for source in range(4):
        for target in range(4):
            if source != target:
                hashed, constant = _hash(pool[source], constant, 0x931E8875)
                mixed = np.uint32(0xCA01F9DD) * pool[target] - np.uint32(0x4973F715) * hashed
                pool[target] = mixed ^ (mixed >> np.uint32(16))
    words, constant = [], 0x8B51F9DD
    for number in range(8):
        word, constant = _hash(pool[number % 4], constant, 0x58F38DED)
        words.append(word.astype(np.uint64))
    halves = [(words[i + 1] << np.uint64(32) | words[i]).tolist() for i in range(0, 8, 2)]
    return [_seeded(*numbers) for numbers in zip(*halves, strict=True)]


def _hash(values: np.ndarray, constant: int, factor: int) -> tuple[np.ndarray, int]:
    """Return the hashes of words, [N], and the next constant."""
    next_constant = constant * factor & 0xFFFFFFFF
    values = (values ^ np.uint32(constant)) * np.uint32(next_constant)
    return values ^ (values >> np.uint32(16)), next_constant


def _seeded(state_high: int, state_low: int, stream_high: int, stream_low: int) -> tuple[int, int]:
    """Return state and increment of PCG64 for a start and a stream of 128 bits each."""
    mask = (1 << 128) - 1
    step = ((stream_high << 64 | stream_low) << 1 | 1) & mask
    state = step + (state_high << 64 | state_low)
    return (state * 0x2360ED051FC65DA44385DF649FCCF645 + step) & mask, step


def choose_rows(count: int, size: int | None, seed: int) -> list[int]:
    """Return the indices of at most `size` of `count` rows, drawn by `seed`, in ascending order; None: all rows."""
    if size is not None and size < 1:
        raise ConfigError(f"size must be at least 1, not {size}")
    if size is None or size >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:size].tolist())
