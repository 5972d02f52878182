"""Coverage of the 95 % bootstrap intervals by patient in simulations whose true value is known.

python scripts/bench/bootstrap_coverage.py --simulations 1000
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from mllm.metrics import scoring
from mllm.metrics.classification import Accuracy
from mllm.metrics.numbers import MAE
from mllm.metrics.scoring import Series
from mllm.structures import Answer

PATIENTS = 80


def accuracy_interval(rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    """Return the interval of the accuracy of patients with 1 to 5 answers; the patients differ, with mean 0.7."""
    series = Series(Accuracy)
    for patient in range(PATIENTS):
        skill = rng.beta(3.5, 1.5)
        for _ in range(rng.integers(1, 6)):
            series.add(Answer("a" if rng.random() < skill else "b"), Answer("a", group=str(patient)))
    figures = series.result(resamples)
    return figures["accuracy_ci_low"], figures["accuracy_ci_high"]


def mae_interval(rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    """Return the interval of the MAE of patients with 1 to 5 answers, whose errors have the mean size 3 and differ."""
    series = Series(MAE)
    for patient in range(PATIENTS):
        size = rng.gamma(4, 3 / 4)
        for _ in range(rng.integers(1, 6)):
            true = rng.uniform(0, 100)
            error = size * rng.uniform(0, 2) * rng.choice([-1, 1])
            series.add(Answer(f"{true + error:.6f}"), Answer(f"{true:.6f}", group=str(patient)))
    figures = series.result(resamples)
    return figures["mae_ci_low"], figures["mae_ci_high"]


SIMULATIONS = {"accuracy": (accuracy_interval, 0.7), "mae": (mae_interval, 3.0)}
"""Figure -> function that simulates a split and returns the interval, and the true value."""


def main() -> int:
    """Print the coverage of each figure; return 1 if one is not within 93 and 97 %."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--groups", action="store_true", help="draw groups of patients, as for many answers")
    args = parser.parse_args()
    if args.groups:
        scoring.FEW = 100
    outside = False
    for name, (simulate, true) in SIMULATIONS.items():
        rng = np.random.default_rng(0)
        limits = [simulate(rng, args.resamples) for _ in range(args.simulations)]
        coverage = sum(low <= true <= high for low, high in limits) / args.simulations
        outside |= not 0.93 <= coverage <= 0.97
        print(f"{name}: {100 * coverage:.1f} % of {args.simulations} intervals contain {true}")
    return int(outside)


if __name__ == "__main__":
    sys.exit(main())
