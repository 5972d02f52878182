"""Privacy mechanism of a training: sampling, clipping, noise and number of updates."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mllm.engine.privacy.accounting import epsilon_spent, noise_multiplier_for
from mllm.engine.privacy.ledger import Ledger
from mllm.errors import ConfigError
from mllm.files import write_json
from mllm.run_files import LEDGER


@dataclass(frozen=True)
class Mechanism:
    """Poisson-subsampled Gaussian mechanism on clipped gradients."""

    units: int
    """Number of units in the training data: samples or patients."""
    sample_rate: float
    """Probability in (0, 1] of each unit to take part in an update."""
    clip_norm: float
    delta: float
    noise_multiplier: float | None = None
    """Standard deviation of the noise divided by `clip_norm`. None: computed from `target_epsilon`."""
    target_epsilon: float | None = None
    """Upper bound of epsilon. None: no bound."""
    accountant: Literal["prv", "rdp"] = "prv"
    unit: Literal["sample", "patient"] = "sample"
    clipping: Literal["flat", "per_layer"] = "flat"
    secure_mode: bool = False
    test_noise_seed: int | None = None
    data: str = ""
    """Digest of the options of the training split. A resumed run must use equal ones."""
    content: str = ""
    """Hash of the files of the training split."""

    @property
    def expected_units(self) -> float:
        """Return the mean number of units of an update, by which each noisy sum is divided."""
        return self.units * self.sample_rate

    def with_noise(self, steps: int) -> Mechanism:
        """Return a copy with the noise multiplier for `steps` updates, if none is set."""
        if self.noise_multiplier is not None:
            return self
        assert self.target_epsilon is not None
        sigma = noise_multiplier_for(self.target_epsilon, self.delta, self.sample_rate, steps, self.accountant)
        return replace(self, noise_multiplier=sigma)

    @property
    def sigma(self) -> float:
        """Return the noise multiplier, which must be set."""
        assert self.noise_multiplier is not None
        return self.noise_multiplier

    def spent(self, ledger: Ledger) -> float:
        """Return the epsilon of the updates in a ledger."""
        return epsilon_spent(ledger.entries, self.delta, self.accountant)

    def affordable(self, ledger: Ledger, steps: int) -> int:
        """Return the largest number of further updates, at most `steps`, that does not exceed the target."""
        target = math.inf if self.target_epsilon is None else self.target_epsilon

        def is_within_target(further: int) -> bool:
            entries = [*ledger.entries, (self.sigma, self.sample_rate, further)]
            return target == math.inf or epsilon_spent(entries, self.delta, self.accountant) <= target

        if is_within_target(steps):
            return steps
        lower, upper = 0, steps
        while upper - lower > 1:
            middle = (lower + upper) // 2
            lower, upper = (middle, upper) if is_within_target(middle) else (lower, middle)
        return lower


def digest_of_options(options: Any) -> str:
    """Return the SHA-256 of the options of the training split, which have paths of private data."""
    return hashlib.sha256(repr(options).encode()).hexdigest()


def hash_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the contents of files, and of the names and sizes of the entries of folders."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                for part in iter(lambda: file.read(2**20), b""):
                    digest.update(part)
        elif path.is_dir():
            entries = sorted((entry.name, entry.stat().st_size if entry.is_file() else 0) for entry in path.iterdir())
            digest.update(repr(entries).encode())
    return digest.hexdigest()


def save_ledger(folder: Path, ledger: Ledger, mechanism: Mechanism) -> None:
    """Write the ledger and its mechanism to a checkpoint."""
    write_json(folder / LEDGER, {"ledger": ledger.to_dict(), "mechanism": asdict(mechanism)})


def resume_ledger(folder: Path, mechanism: Mechanism) -> tuple[Ledger, Mechanism]:
    """Return the ledger of a checkpoint, and the mechanism with the noise multiplier of that run.

    Raises:
        ConfigError: The checkpoint has no ledger, or data, unit or sample rate have changed.
    """
    path = folder / LEDGER
    if not path.is_file():
        raise ConfigError(
            f"--resume: {folder} was trained without privacy, so its updates are not in a ledger; "
            "start a new run, or remove privacy_args"
        )
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    saved = Mechanism(**state["mechanism"])
    if saved.data.startswith("{"):  # an older version wrote the options instead of their digest
        saved = replace(saved, data=hashlib.sha256(saved.data.encode()).hexdigest())
    constant = {
        "units": "units in the training data",
        "sample_rate": "the sample rate",
        "unit": "privacy_args.unit",
        "data": "data_args.train",
        "content": "the hash of the training files",
        "test_noise_seed": "privacy_args.test_noise_seed",
    }
    for key, name in constant.items():
        value, saved_value = asdict(mechanism)[key], asdict(saved)[key]
        if value != saved_value:
            change = f"{name} is {value}, but {saved_value} in {folder}"
            if key in ("data", "content"):
                change = f"{name} differs from that in {folder}"
            raise ConfigError(
                f"--resume: {change}, and all updates in a ledger must have the same data and rate: restore the value, "
                "or start a new run without --resume"
            )
    noise = mechanism.noise_multiplier or saved.noise_multiplier
    return Ledger.from_dict(state["ledger"]), replace(mechanism, noise_multiplier=noise)
