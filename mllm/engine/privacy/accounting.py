"""How much privacy noisy updates spend: epsilon from a ledger, and the noise that a target allows.

The mechanism is the Poisson-subsampled Gaussian (arXiv:1607.00133): every unit takes part in an update with the sample
rate, independently of the others, and Gaussian noise is added to the sum of clipped gradients. Two datasets are
neighbors where one has a unit more than the other.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Iterable
from typing import Any, Literal

from mllm.errors import ConfigError

Accountant = Literal["prv", "rdp"]
MOST_NOISE = 1e4
"""A noise multiplier above which nothing can be learned; a target that asks for more is refused."""
STEP_DOWN = 1.25
"""By how much the search lowers the noise at most at a time."""
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)
"""Orders of Renyi's divergence: those of Opacus, and larger ones for small epsilons."""
TOLERANCE = 0.002
"""The share of a target epsilon that the search for the noise may leave unspent."""
COARSE = 0.1
"""The error in epsilon of the first, quick look of the PRV accountant."""
FINE = (1e-3, 0.01)
"""The least and the largest error in epsilon of its second look, which is meant to be 0.5 % of epsilon."""


def epsilon_spent(entries: Iterable[tuple[float, float, int]], delta: float, accountant: Accountant) -> float:
    """The epsilon at `delta` that updates have spent together; an upper bound, 0 for none, infinite without noise.

    Args:
        entries: (noise multiplier, sample rate, steps) of each kind of update, in any order.
        delta: In (0, 1).
        accountant: 'prv' composes privacy loss random variables numerically (arXiv:2106.02848); 'rdp' Renyi
            divergences (arXiv:1908.10530).

    Raises `ConfigError` where the accountant finds no number.
    """
    totals: dict[tuple[float, float], int] = {}
    for noise_multiplier, sample_rate, steps in entries:
        if steps:
            totals[noise_multiplier, sample_rate] = totals.get((noise_multiplier, sample_rate), 0) + steps
    if not totals:
        return 0.0
    if any(noise_multiplier == 0 for noise_multiplier, _ in totals):
        return math.inf
    # Composition does not depend on the order, and equal updates are composed at once.
    history = [(*kind, steps) for kind, steps in sorted(totals.items())]
    return _rdp(history, delta) if accountant == "rdp" else _prv(history, delta)


def noise_multiplier_for(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, accountant: Accountant
) -> float:
    """The least noise multiplier with which `steps` updates spend no more than `target_epsilon` at `delta`.

    Found by trying: what is returned was seen to stay within the target, and leaves 0.2 % of it unspent at most. Raises
    `ConfigError` where no noise up to 10,000 is enough.
    """
    assert steps > 0, steps

    def spent(noise_multiplier: float, by: Accountant = accountant) -> float:
        return epsilon_spent([(noise_multiplier, sample_rate, steps)], delta, by)

    enough = 1.0
    # Renyi's bound is the looser one and quick; the other's time explodes where there is far too little noise.
    while (epsilon := spent(enough, "rdp")) > target_epsilon and enough < MOST_NOISE:
        enough *= 2
    while epsilon <= target_epsilon and spent(enough / STEP_DOWN, "rdp") <= target_epsilon:
        enough /= STEP_DOWN
    epsilon = spent(enough)
    if epsilon > target_epsilon:
        raise ConfigError(
            f"an epsilon of {target_epsilon:g} at delta={delta:g} cannot be kept over {steps} updates by the "
            f"'{accountant}' accountant with any noise that leaves something to learn: raise "
            f"privacy_args.target_epsilon" + (", or set accountant='prv'" if accountant == "rdp" else "")
        )
    too_little, too_much = 0.0, math.inf
    while target_epsilon - epsilon > TOLERANCE * target_epsilon and enough - too_little > 1e-6 * enough:
        if not too_little:
            middle = enough / STEP_DOWN
        else:
            # Epsilon is nearly a power of the noise, so a line through logarithms meets the target soon.
            aim = math.log(target_epsilon * (1 - TOLERANCE / 2) / epsilon) / math.log(too_much / epsilon)
            middle = enough * (too_little / enough) ** min(max(aim, 0.02), 0.98)
        found = spent(middle)
        if found <= target_epsilon:
            enough, epsilon = middle, found
        else:
            too_little, too_much = middle, found
    return enough


def _accountants() -> Any:
    """Opacus's accountants; the handler that Opacus gives to the root logger, for all packages, is taken away again."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        return importlib.import_module("opacus.accountants")
    except ImportError as error:
        raise ConfigError(f"privacy_args needs the package opacus ({error}): pip install -e '.[privacy]'") from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _rdp(history: list[tuple[float, float, int]], delta: float) -> float:
    book = _accountants().RDPAccountant()
    book.history = history
    with warnings.catch_warnings():
        # "Optimal order is the largest alpha": the bound holds all the same, it is only loose.
        warnings.simplefilter("ignore", UserWarning)
        return float(book.get_epsilon(delta, alphas=list(ORDERS)))


def _prv(history: list[tuple[float, float, int]], delta: float) -> float:
    """The upper bound of the PRV accountant, its error chosen by the size of what it finds.

    The bound lies above the epsilon by the error that is asked for, and time and memory grow with its inverse.
    """
    book = _accountants().PRVAccountant()
    book.history = history
    try:
        with warnings.catch_warnings():
            # At a rate of 1 it takes the logarithm of 0, whose minus infinity is what it means; and see `_rdp`.
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            first = float(book.get_epsilon(delta, eps_error=COARSE))
            error = min(max(0.005 * (first - COARSE), FINE[0]), FINE[1])
            return float(book.get_epsilon(delta, eps_error=error))
    except (RuntimeError, ValueError, MemoryError) as failure:
        raise ConfigError(
            f"the 'prv' accountant finds no epsilon at delta={delta:g} for (noise multiplier, sample rate, steps) = "
            f"{', '.join(map(str, history))}: {failure}; set privacy_args.accountant to 'rdp'"
        ) from failure
