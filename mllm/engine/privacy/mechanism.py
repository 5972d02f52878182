"""What every update of a private training does, and how many updates its promise allows."""

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

FILE = "ledger.json"
"""In every checkpoint: the updates made so far, and what they were made of."""


@dataclass(frozen=True)
class Mechanism:
    """A Poisson-subsampled Gaussian mechanism: who is drawn, how gradients are clipped, how much noise is added."""

    units: int
    """Units in the training data: samples or patients."""
    sample_rate: float
    """Probability in (0, 1] with which each unit takes part in an update."""
    clip_norm: float
    delta: float
    noise_multiplier: float | None = None
    """Standard deviation of the noise on the clipped sum over `clip_norm`; None: what `target_epsilon` asks for."""
    target_epsilon: float | None = None
    """Never exceeded; None: without a target."""
    accountant: Literal["prv", "rdp"] = "prv"
    unit: Literal["sample", "patient"] = "sample"
    clipping: Literal["flat", "per_layer"] = "flat"
    secure_mode: bool = False
    test_noise_seed: int | None = None
    data: str = ""
    """The training split as the config names it: a resumed run must draw from the same one."""
    content: str = ""
    """A hash of the files that it names."""

    @property
    def expected_units(self) -> float:
        """Units of an update on average, by which the noisy sum is divided, however many were drawn."""
        return self.units * self.sample_rate

    def with_noise(self, steps: int) -> Mechanism:
        """The same with the noise that `steps` updates need, where none is set."""
        if self.noise_multiplier is not None:
            return self
        assert self.target_epsilon is not None
        sigma = noise_multiplier_for(self.target_epsilon, self.delta, self.sample_rate, steps, self.accountant)
        return replace(self, noise_multiplier=sigma)

    @property
    def sigma(self) -> float:
        """The noise multiplier, which must be known by now."""
        assert self.noise_multiplier is not None
        return self.noise_multiplier

    def spent(self, ledger: Ledger) -> float:
        """The epsilon that the updates in a ledger have spent."""
        return epsilon_spent(ledger.entries, self.delta, self.accountant)

    def affordable(self, ledger: Ledger, wanted: int) -> int:
        """How many of `wanted` further updates keep the target."""
        target = math.inf if self.target_epsilon is None else self.target_epsilon

        def keeps(steps: int) -> bool:
            later = [*ledger.entries, (self.sigma, self.sample_rate, steps)]
            return target == math.inf or epsilon_spent(later, self.delta, self.accountant) <= target

        if keeps(wanted):
            return wanted
        kept, broken = 0, wanted
        while broken - kept > 1:
            middle = (kept + broken) // 2
            kept, broken = (middle, broken) if keeps(middle) else (kept, middle)
        return kept


def hash_of(paths: Iterable[Path]) -> str:
    """SHA-256 of what files hold, and of the names and sizes of what folders hold, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                for part in iter(lambda: file.read(2**20), b""):
                    digest.update(part)
        elif path.is_dir():
            listed = sorted((entry.name, entry.stat().st_size if entry.is_file() else 0) for entry in path.iterdir())
            digest.update(repr(listed).encode())
    return digest.hexdigest()


def save_ledger(folder: Path, ledger: Ledger, mechanism: Mechanism) -> None:
    """Writes the ledger into a checkpoint, with the mechanism that it belongs to."""
    write_json(folder / FILE, {"ledger": ledger.to_dict(), "mechanism": asdict(mechanism)})


def continued(folder: Path, mechanism: Mechanism) -> tuple[Ledger, Mechanism]:
    """The ledger of a checkpoint, and the mechanism with the noise that it began with.

    Raises `ConfigError` where the run would draw from other data or at another rate, which the ledger cannot tell of.
    """
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(
            f"--resume: {folder} was trained without privacy, so what it learned so far is not counted; "
            "start a new run, or remove privacy_args"
        )
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    before = Mechanism(**state["mechanism"])
    held = {
        "units": "units in the training data",
        "sample_rate": "the sample rate",
        "unit": "privacy_args.unit",
        "data": "data_args.train",
        "content": "the hash of the training files",
        "test_noise_seed": "privacy_args.test_noise_seed",
    }
    for key, name in held.items():
        now, then = asdict(mechanism)[key], asdict(before)[key]
        if now != then:
            raise ConfigError(
                f"--resume: {name} is {now}, but {then} in {folder}, and privacy is counted for one dataset drawn from "
                "at one rate: set it back, or start a new run without --resume"
            )
    noise = mechanism.noise_multiplier or before.noise_multiplier
    return Ledger.from_dict(state["ledger"]), replace(mechanism, noise_multiplier=noise)
