"""The privacy record: what a run promises, what the promise rests on, and what it does not cover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mllm.engine.privacy.ledger import Ledger
from mllm.engine.privacy.mechanism import Mechanism
from mllm.files import write_json

FILE = "privacy.json"
"""The record's name in the run folder."""
WEAK = 10
"""The epsilon above which a promise is called weak (arXiv:2303.00654, section 5.2)."""
OUTSIDE = (
    "training loss, gradient norms and their curves: they are computed from the data without noise",
    "choices made by looking at results: hyperparameters, the checkpoint or the run that is kept",
    "preprocessing: filters, deduplication, and whatever else was decided by looking at the data",
    "files of the run folder beside the adapter, the checkpoints' weights and this record: data_summary.json and its "
    "pictures, logs and skipped rows tell of the data without noise, so keep them where the data is",
    "the number of units, which sets the rate and stands in this record",
    "the validation and test splits: their samples are read, measured and answered without noise",
    "other runs on the same data: their epsilons and deltas add up",
    "the data of the base model, and the same facts where they also stand elsewhere",
    "time, memory and messages of the machine that trained; who reads them learns how many units were drawn",
)
"""What the promise does not cover, whatever the run."""


def privacy_record(mechanism: Mechanism, ledger: Ledger) -> dict[str, Any]:
    """What `privacy.json` says of the updates in a ledger; `steps` are those made, empty draws among them."""
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
        "ledger": ledger.to_dict()["entries"],
        "outside_the_guarantee": [*OUTSIDE, *_outside(mechanism)],
        "warnings": _warnings(mechanism, epsilon),
    }


def write_record(folder: Path, mechanism: Mechanism, ledger: Ledger) -> dict[str, Any]:
    """Writes `privacy.json` into the run folder, and gives what it says."""
    record = privacy_record(mechanism, ledger)
    write_json(folder / FILE, record)
    return record


def _guarantee(mechanism: Mechanism, epsilon: float) -> str:
    """The promise in a sentence; none where it is void."""
    if mechanism.test_noise_seed is not None:
        return "No guarantee: the noise was made from a known seed (privacy_args.test_noise_seed), for a test."
    # Rounded up: a promise must not be smaller than what was spent.
    return (
        f"({_ceiling(epsilon)}, {mechanism.delta:g})-differentially private for each {mechanism.unit} of the training "
        "data, by DP-SGD with Poisson sampling."
    )


def _ceiling(epsilon: float) -> str:
    """An epsilon with three decimals, never less than it is."""
    shown = f"{epsilon:.3f}"
    return shown if float(shown) >= epsilon else f"{epsilon + 0.001:.3f}"


def _outside(mechanism: Mechanism) -> list[str]:
    """What the promise does not cover because of its unit."""
    if mechanism.unit == "patient":
        return ["a patient who stands in the data under several names"]
    return ["people with several samples, who are protected less than one sample is"]


def _warnings(mechanism: Mechanism, epsilon: float) -> list[str]:
    """What a reader of the epsilon must know beside it."""
    warnings = []
    if mechanism.test_noise_seed is not None:
        warnings.append("test_noise_seed is set: whoever knows it can take the noise away, so the guarantee is void")
    if not mechanism.secure_mode:
        warnings.append(
            "secure_mode is off: the noise comes from a generator that is not cryptographic, and in plain floating "
            "point; turn it on for a model that leaves the house"
        )
    if epsilon > WEAK:
        warnings.append(f"epsilon is above {WEAK}, which promises little")
    return warnings
