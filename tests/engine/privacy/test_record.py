"""Tests of the privacy record and of its section in the model card."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mllm.engine.privacy.accounting import epsilon_spent
from mllm.engine.privacy.ledger import Ledger
from mllm.engine.privacy.mechanism import Mechanism
from mllm.engine.privacy.record import privacy_record, write_record
from mllm.export.card import card_text
from mllm.export.facts import Facts
from mllm.run_files import PRIVACY

MECHANISM = Mechanism(
    units=900, sample_rate=8 / 900, clip_norm=1.0, delta=1e-5, noise_multiplier=0.7, target_epsilon=3.0, unit="patient"
)
LEDGER = Ledger([(0.7, 8 / 900, 225)])
KEYS = {
    *("epsilon_spent", "target_epsilon", "delta", "noise_multiplier", "clip_norm", "sample_rate", "steps"),
    *("accountant", "unit", "sampling", "secure_mode", "ledger"),
}


def test_epsilon_can_be_computed_from_the_record(tmp_path) -> None:
    record = write_record(tmp_path, MECHANISM, LEDGER)
    read = json.loads((tmp_path / PRIVACY).read_text())
    assert read == record
    assert read.keys() >= KEYS
    entries = [(entry["noise_multiplier"], entry["sample_rate"], entry["steps"]) for entry in read["ledger"]]
    assert epsilon_spent(entries, read["delta"], read["accountant"]) == read["epsilon_spent"] <= 3.0
    assert (read["steps"], read["unit"], read["sampling"], read["secure_mode"]) == (225, "patient", "poisson", False)


def test_the_stated_epsilon_is_not_below_the_spent_epsilon() -> None:
    for steps in (1, 57, 225, 226):
        record = privacy_record(MECHANISM, Ledger([(0.7, 8 / 900, steps)]))
        promised = float(record["guarantee"].split(",")[0].removeprefix("("))
        assert record["epsilon_spent"] <= promised <= record["epsilon_spent"] + 0.001
        assert "1e-05)-differentially private for each patient" in record["guarantee"]


def test_warnings_list_settings_that_weaken_the_guarantee() -> None:
    def warnings(**changes) -> str:
        return " ".join(privacy_record(replace(MECHANISM, **changes), LEDGER)["warnings"])

    assert warnings() == warnings(target_epsilon=None) and "secure_mode is off" in warnings()
    assert warnings(secure_mode=True) == ""
    assert "epsilon is above 10" not in warnings()
    weak = privacy_record(replace(MECHANISM, noise_multiplier=0.3), Ledger([(0.3, 0.1, 100)]))
    assert weak["epsilon_spent"] > 10 and "epsilon is above 10" in " ".join(weak["warnings"])
    void = privacy_record(replace(MECHANISM, test_noise_seed=0), LEDGER)
    assert void["guarantee"].startswith("No guarantee") and "the guarantee is void" in " ".join(void["warnings"])


@pytest.mark.parametrize(("unit", "sentence"), [("sample", "several samples"), ("patient", "under several names")])
def test_the_limitations_depend_on_the_unit(unit: str, sentence: str) -> None:
    outside = privacy_record(replace(MECHANISM, unit=unit), LEDGER)["outside_the_guarantee"]
    assert sum(sentence in line for line in outside) == 1
    for word in ("loss", "hyperparameters", "preprocessing", "validation"):
        assert any(word in line for line in outside)


def test_the_card_has_a_section_about_privacy() -> None:
    settings = {"type": "causal-lm", "max_length": 128}
    record = privacy_record(MECHANISM, LEDGER)
    card = card_text("adapter", Facts("google/vaultgemma-1b", settings, privacy=record))
    section = card.split("## Privacy\n\n")[1].split("\n## ")[0]
    assert section.startswith(f"**{record['guarantee']}**")
    for line in ("| delta | 1e-05 |", "| noise_multiplier | 0.7 |", "| steps | 225 |", "| sampling | poisson |"):
        assert line in section
    assert all(f"* {sentence}" in section for sentence in (*record["outside_the_guarantee"], *record["warnings"]))
    assert "## Privacy" not in card_text("adapter", Facts("google/vaultgemma-1b", settings))
