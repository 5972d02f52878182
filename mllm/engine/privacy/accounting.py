"""Privacy accounting: epsilon of a ledger, and the noise multiplier for a target epsilon.

The mechanism is the Poisson-subsampled Gaussian mechanism (arXiv:1607.00133): each unit takes part in an update with
probability `sample_rate`, independently of the others, and Gaussian noise is added to the sum of clipped gradients. Two
datasets are neighbors if they differ by one added or removed unit.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable
from functools import cache, wraps
from typing import Any, Literal

import numpy as np

from mllm.errors import ConfigError

Accountant = Literal["prv", "rdp"]
MAX_NOISE = 1e4
"""Largest noise multiplier of the search. Nothing can be learned with more noise."""
SEARCH_FACTOR = 1.25
"""Factor by which the search lowers the noise multiplier until it is too small."""
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)
"""Orders of the Renyi divergence: those of Opacus, and larger ones for small epsilons."""
TOLERANCE = 0.002
"""Fraction of the target epsilon that the search may leave unspent."""
COARSE_ERROR = 0.1
"""Error in epsilon of the first computation of the PRV accountant."""
FINE_ERROR = (1e-3, 0.01)
"""Bounds of the error in epsilon of its second computation, which is 0.5 % of epsilon."""


def epsilon_spent(entries: Iterable[tuple[float, float, int]], delta: float, accountant: Accountant) -> float:
    """Return an upper bound of the epsilon at `delta` of all updates; 0 for no updates, infinite without noise.

    Args:
        entries: (noise multiplier, sample rate, number of updates), in any order.
        delta: Delta, in (0, 1).
        accountant: 'prv' composes privacy loss random variables numerically (arXiv:2106.02848); 'rdp' composes Renyi
            divergences (arXiv:1908.10530).

    Raises:
        ConfigError: The accountant fails.
    """
    totals: dict[tuple[float, float], int] = {}
    for noise_multiplier, sample_rate, steps in entries:
        if steps:
            totals[noise_multiplier, sample_rate] = totals.get((noise_multiplier, sample_rate), 0) + steps
    if not totals:
        return 0.0
    if any(noise_multiplier == 0 for noise_multiplier, _ in totals):
        return math.inf
    # Composition does not depend on the order.
    history = tuple((*kind, steps) for kind, steps in sorted(totals.items()))
    return _rdp(history, delta) if accountant == "rdp" else _prv(history, delta)


def noise_multiplier_for(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, accountant: Accountant
) -> float:
    """Search the smallest noise multiplier with which `steps` updates spend at most `target_epsilon` at `delta`.

    The returned noise multiplier spends between 99.8 and 100 % of the target.

    Raises:
        ConfigError: A noise multiplier of 10,000 is not enough.
    """
    assert steps > 0, steps

    def epsilon_of(noise_multiplier: float, accountant: Accountant = accountant) -> float:
        return epsilon_spent([(noise_multiplier, sample_rate, steps)], delta, accountant)

    upper = 1.0
    # The Renyi bound is looser but fast. PRV becomes very slow if there is far too little noise.
    while (epsilon := epsilon_of(upper, "rdp")) > target_epsilon and upper < MAX_NOISE:
        upper *= 2
    while epsilon <= target_epsilon and epsilon_of(upper / SEARCH_FACTOR, "rdp") <= target_epsilon:
        upper /= SEARCH_FACTOR
    epsilon = epsilon_of(upper)
    if epsilon > target_epsilon:
        raise ConfigError(
            f"an epsilon of {target_epsilon:g} at delta={delta:g} is impossible for {steps} updates by the "
            f"'{accountant}' accountant, even with a noise multiplier of {upper:g}: raise "
            f"privacy_args.target_epsilon" + (", or set accountant='prv'" if accountant == "rdp" else "")
        )
    lower, epsilon_at_lower = 0.0, math.inf
    while target_epsilon - epsilon > TOLERANCE * target_epsilon and upper - lower > 1e-6 * upper:
        if not lower:
            middle = upper / SEARCH_FACTOR
        else:
            # Epsilon is almost a power of the noise multiplier, so interpolate the logarithms.
            position = math.log(target_epsilon * (1 - TOLERANCE / 2) / epsilon) / math.log(epsilon_at_lower / epsilon)
            middle = upper * (lower / upper) ** min(max(position, 0.02), 0.98)
        epsilon_at_middle = epsilon_of(middle)
        if epsilon_at_middle <= target_epsilon:
            upper, epsilon = middle, epsilon_at_middle
        else:
            lower, epsilon_at_lower = middle, epsilon_at_middle
    return upper


def _accountants() -> Any:
    """Return the accountants of Opacus. Importing Opacus adds a handler to the root logger; it is removed."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        accountants = importlib.import_module("opacus.accountants")
    except ImportError as error:
        raise ConfigError(f"privacy_args needs the package opacus ({error}): pip install -e '.[privacy]'") from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    _remember_divergences(accountants.analysis.rdp)
    return accountants


@cache
def _remember_divergences(rdp: Any) -> None:
    """Let `compute_rdp` of a module of Opacus remember the divergences of one update by rate, noise and order.

    The PRV accountant asks four times for the same ones, which takes most of its time.
    """
    compute_rdp: Callable[..., Any] = rdp.compute_rdp

    @cache
    def of_one_update(q: float, noise_multiplier: float, order: float) -> Any:
        return compute_rdp(q=q, noise_multiplier=noise_multiplier, steps=1, orders=[order])[0]

    @wraps(compute_rdp)
    def remembered(*, q: float, noise_multiplier: float, steps: int, orders: Any) -> Any:
        if isinstance(orders, float):
            return of_one_update(q, noise_multiplier, orders) * steps
        return np.array([of_one_update(q, noise_multiplier, order) for order in orders]) * steps

    rdp.compute_rdp = remembered


def _rdp(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """Return the bound of the Renyi accountant of Opacus."""
    divergences = sum(_divergences(noise_multiplier, rate) * steps for noise_multiplier, rate, steps in history)
    with warnings.catch_warnings():
        # "Optimal order is the largest alpha": the bound is valid, but loose.
        warnings.simplefilter("ignore", UserWarning)
        epsilon, _ = _accountants().analysis.rdp.get_privacy_spent(orders=ORDERS, rdp=divergences, delta=delta)
    return float(epsilon)


def _divergences(noise_multiplier: float, sample_rate: float) -> Any:
    """Return the Renyi divergence of one update for each of `ORDERS`, an array [orders]."""
    return _accountants().analysis.rdp.compute_rdp(
        q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS
    )


@cache
def _prv(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """Return the upper bound of the PRV accountant, with an error proportional to epsilon.

    The bound exceeds epsilon by the requested error. Time and memory are inversely proportional to the error: it takes
    up to a second, and a run asks several times for the same one.
    """
    book = _accountants().PRVAccountant()
    book.history = list(history)
    try:
        with warnings.catch_warnings():
            # At a rate of 1 it computes log(0) = -inf, which is correct. For UserWarning, see `_rdp`.
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            first = float(book.get_epsilon(delta, eps_error=COARSE_ERROR))
            error = min(max(0.005 * (first - COARSE_ERROR), FINE_ERROR[0]), FINE_ERROR[1])
            return float(book.get_epsilon(delta, eps_error=error))
    except (RuntimeError, ValueError, MemoryError) as failure:
        raise ConfigError(
            f"the 'prv' accountant failed at delta={delta:g} for (noise multiplier, sample rate, steps) = "
            f"{', '.join(map(str, history))}: {failure}; set privacy_args.accountant to 'rdp'"
        ) from failure
