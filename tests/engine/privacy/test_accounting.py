"""Tests of epsilon against the accountants of Google, and of the noise for a target."""

from __future__ import annotations

import importlib
import logging
import math
import sys
from unittest.mock import patch

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism
from dp_accounting.rdp import RdpAccountant
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

from mllm.engine.privacy.accounting import epsilon_spent, noise_multiplier_for
from mllm.engine.privacy.ledger import Ledger
from mllm.errors import ConfigError

DELTA = 1e-5
REFERENCES = [
    # Sample rate, noise multiplier, steps, epsilon by Renyi's divergences and by privacy loss distributions.
    (0.01, 1.1, 10_000, 5.6320, 5.193),
    (256 / 60_000, 1.1, 14_062, 2.5966, 2.382),
    (16 / 33_955, 0.8, 2_000, 1.0018, 0.169),
]
LEDGER = Ledger([(0.9, 0.02, 60), (0.7, 0.02, 30), (0.9, 0.02, 10), (1.3, 0.3, 5)])


def google_rdp(entries: Ledger) -> float:
    accountant = RdpAccountant()
    for sigma, rate, steps in entries.entries:
        accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps))
    return float(accountant.get_epsilon(DELTA))


def google_pld(entries: Ledger, interval: float = 1e-4) -> float:
    total: PrivacyLossDistribution | None = None
    for sigma, rate, steps in entries.entries:
        one = from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=interval)
        part = one.self_compose(steps)
        total = part if total is None else total.compose(part)
    assert total is not None
    return float(total.get_epsilon_for_delta(DELTA))


@pytest.mark.parametrize(("rate", "sigma", "steps", "by_rdp", "by_pld"), REFERENCES)
def test_epsilon_equals_published_values_and_those_of_google_dp_accounting(
    rate: float, sigma: float, steps: int, by_rdp: float, by_pld: float
) -> None:
    ledger = Ledger([(sigma, rate, steps)])
    rdp, prv = (epsilon_spent(ledger.entries, DELTA, accountant) for accountant in ("rdp", "prv"))
    assert rdp == pytest.approx(by_rdp, rel=1e-3) and rdp == pytest.approx(google_rdp(ledger), rel=1e-3)
    assert prv == pytest.approx(by_pld, rel=1e-2) and prv == pytest.approx(google_pld(ledger), rel=1e-2)


def test_remembered_divergences_are_those_of_opacus_bit_for_bit() -> None:
    epsilon_spent(LEDGER.entries, DELTA, "prv")
    remembered = importlib.import_module("opacus.accountants.analysis.rdp").compute_rdp
    for rate, sigma, steps in ((0.02, 0.9, 60), (1.0, 0.7, 1), (0.3, 0.0, 5)):
        for orders in ([1.1, 7.3, 12, 63], 2.5, RDPAccountant.DEFAULT_ALPHAS):
            options = dict(q=rate, noise_multiplier=sigma, steps=steps, orders=orders)
            for _ in range(2):
                assert np.array_equal(remembered(**options), remembered.__wrapped__(**options))


def test_updates_with_different_noise_are_composed() -> None:
    assert epsilon_spent(LEDGER.entries, DELTA, "rdp") == pytest.approx(google_rdp(LEDGER), rel=1e-3)
    assert epsilon_spent(LEDGER.entries, DELTA, "prv") == pytest.approx(google_pld(LEDGER, 1e-3), rel=1e-2)


def test_order_does_not_matter_and_no_updates_cost_nothing() -> None:
    forward, back = LEDGER.entries, LEDGER.entries[::-1]
    assert epsilon_spent(forward, DELTA, "prv") == pytest.approx(epsilon_spent(back, DELTA, "prv"), rel=1e-6)
    assert epsilon_spent([], DELTA, "prv") == epsilon_spent([(0.5, 0.1, 0)], DELTA, "rdp") == 0
    assert epsilon_spent([(1.0, 0.1, 3), (0.0, 0.1, 1)], DELTA, "prv") == math.inf


@pytest.mark.parametrize(("target", "sigma"), [(15.0, 0.396), (8.0, 0.488), (3.0, 0.672)])
def test_the_noise_of_the_published_notebook(target: float, sigma: float) -> None:
    """VaultGemma's notebook: 900 samples and 225 updates of 8; it computed its noise for another sampling rate."""
    multiplier = noise_multiplier_for(target, DELTA, 8 / 900, 225, "prv")
    assert multiplier == pytest.approx(sigma, rel=3e-3)
    used = {15.0: 0.339, 8.0: 0.405, 3.0: 0.532}[target]
    spent = {15.0: 23.7, 8.0: 14.0, 3.0: 6.17}[target]
    assert epsilon_spent([(used, 8 / 900, 225)], DELTA, "prv") == pytest.approx(spent, rel=1e-2)


def split(steps: int, parts: list[int]) -> list[int]:
    """Return `steps` in consecutive runs, as after resumes."""
    bounds = sorted({0, steps, *(part % steps for part in parts)})
    return [end - start for start, end in zip(bounds, bounds[1:], strict=False)]


@settings(max_examples=3, deadline=None)
@given(
    target=st.floats(0.3, 20),
    delta=st.floats(1e-8, 1e-3),
    rate=st.floats(1e-4, 1.0),
    steps=st.integers(1, 300),
    accountant=st.sampled_from(["prv", "rdp"]),
    resumes=st.lists(st.integers(0, 10_000), max_size=2),
)
@example(target=3.0, delta=1e-5, rate=1.0, steps=1, accountant="prv", resumes=[])
@example(target=3.0, delta=1e-5, rate=8 / 900, steps=225, accountant="prv", resumes=[100, 101])
def test_the_spent_epsilon_never_exceeds_the_target(target, delta, rate, steps, accountant, resumes) -> None:
    """Every update counts, even with an empty draw, and after any number of saves of the ledger."""
    sigma = noise_multiplier_for(target, delta, rate, steps, accountant)
    ledger = Ledger()
    for part in split(steps, resumes):
        ledger.add(sigma, rate, part)
        ledger = Ledger.from_dict(ledger.to_dict())
        assert epsilon_spent(ledger.entries, delta, accountant) <= target
    assert ledger.steps == steps
    assert epsilon_spent(ledger.entries, delta, accountant) >= 0.99 * target, "noise is not wasted"


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_an_impossible_target_is_refused(accountant) -> None:
    with pytest.raises(ConfigError, match="is impossible for 1000 updates .* raise privacy_args.target_epsilon"):
        noise_multiplier_for(1e-5, 1e-9, 1.0, 1000, accountant)


def test_no_handler_is_left_on_the_root_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opacus configures the root logger when it is imported, so every line of the log would appear twice."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # logging.basicConfig does nothing if there are any, as those of pytest
    importlib.import_module("opacus.accountants")  # with the packages that it imports
    with patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
            del sys.modules[name]
        root.handlers.clear()
        importlib.import_module("opacus.accountants")
        assert root.handlers, "Opacus adds no handler any more"
        for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
            del sys.modules[name]
        root.handlers.clear()
        assert 0 < epsilon_spent([(1.0, 0.1, 1)], DELTA, "rdp") < 5
        assert "opacus" in sys.modules and not root.handlers


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(ConfigError, match=r"privacy_args needs the package opacus .*: pip install -e '\.\[privacy\]'"):
        epsilon_spent([(1.0, 0.1, 1)], DELTA, "rdp")
