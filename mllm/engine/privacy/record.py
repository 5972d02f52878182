"""Privacy record of a run: guarantee, parameters and limitations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mllm.engine.privacy.ledger import Ledger
from mllm.engine.privacy.mechanism import Mechanism
from mllm.engine.privacy.noise import describe_generators
from mllm.files import write_json
from mllm.run_files import PRIVACY

WEAK_EPSILON = 10
"""A guarantee with a larger epsilon is weak (arXiv:2303.00654, section 5.2)."""
NOT_COVERED = (
    "training loss, gradient norms and their curves: they are computed from the data without noise",
    "choices based on results: hyperparameters, and the selection of a checkpoint or a run",
    "preprocessing: filters, deduplication and other decisions based on the data",
    "files of the run folder other than the adapter, the weights of checkpoints and this record: data_summary.json, "
    "plots, logs and lists of skipped rows are computed from the data without noise, and predictions.jsonl and "
    "config.py hold rows and paths, so do not publish them",
    "the number of units, which determines the sample rate and is part of this record",
    "the validation and test splits, which are evaluated without noise",
    "other runs on the same data: their epsilons and deltas add up",
    "the training data of the base model, and information that is also published elsewhere",
    "run time, memory and log messages of the training, which reveal the number of drawn units",
)
"""Information that the guarantee of any run does not cover."""


def privacy_record(mechanism: Mechanism, ledger: Ledger) -> dict[str, Any]:
    """Return the contents of `privacy.json` for the updates in a ledger. `steps` includes empty draws."""
    epsilon = mechanism.spent(ledger)
    return {
        "guarantee": _guarantee(mechanism, epsilon),
        "epsilon_spent": epsilon,
        "target_epsilon": mechanism.target_epsilon,
        "delta": mechanism.delta,
        "noise_multiplier": mechanism.noise_multiplier,
        "clip_norm": mechanism.clip_norm,
        "clipping": mechanism.clipping,
        "sample_rate": mechanism.sample_rate,
        "steps": ledger.steps,
        "accountant": mechanism.accountant,
        "unit": mechanism.unit,
        "units": mechanism.units,
        "neighbors": "one unit more or less",
        "sampling": "poisson",
        "secure_mode": mechanism.secure_mode,
        "random_numbers": describe_generators(mechanism.secure_mode, mechanism.test_noise_seed),
        "ledger": ledger.to_dict()["entries"],
        "outside_the_guarantee": [*NOT_COVERED, *_not_covered(mechanism)],
        "warnings": _warnings(mechanism, epsilon),
    }


def write_record(folder: Path, mechanism: Mechanism, ledger: Ledger) -> dict[str, Any]:
    """Write `privacy.json` to the run folder and return its contents."""
    record = privacy_record(mechanism, ledger)
    write_json(folder / PRIVACY, record)
    return record


def _guarantee(mechanism: Mechanism, epsilon: float) -> str:
    """Return the guarantee as a sentence, or a sentence that there is none."""
    if mechanism.test_noise_seed is not None:
        return "No guarantee: the noise has a known seed (privacy_args.test_noise_seed), for a test."
    # Rounded up, because the stated epsilon must not be smaller than the true one.
    return (
        f"({_ceiling(epsilon)}, {mechanism.delta:g})-differentially private for each {mechanism.unit} of the training "
        "data, by DP-SGD with Poisson sampling."
    )


def _ceiling(epsilon: float) -> str:
    """Format an epsilon with three decimals, rounded up."""
    rounded = f"{epsilon:.3f}"
    return rounded if float(rounded) >= epsilon else f"{epsilon + 0.001:.3f}"


def _not_covered(mechanism: Mechanism) -> list[str]:
    """Return the limitations due to the unit of privacy."""
    if mechanism.unit == "patient":
        return ["a patient who is in the data under several names"]
    return ["people with several samples, who are protected less than a single sample"]


def _warnings(mechanism: Mechanism, epsilon: float) -> list[str]:
    """Return warnings about the guarantee."""
    warnings = []
    if mechanism.test_noise_seed is not None:
        warnings.append("test_noise_seed is set: the noise can be computed from it, so the guarantee is void")
    if not mechanism.secure_mode:
        warnings.append(
            "secure_mode is off: the noise comes from a generator that is not cryptographic, without protection "
            "against floating-point attacks; turn it on for a model that is published or shared"
        )
    if epsilon > WEAK_EPSILON:
        warnings.append(f"epsilon is above {WEAK_EPSILON}, which is a weak guarantee")
    return warnings
