"""Tests of `mllm.engine.privacy.mechanism`: noise for a target, number of updates, and the ledger in a checkpoint."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.engine.privacy.accounting import epsilon_spent
from mllm.engine.privacy.ledger import Ledger
from mllm.engine.privacy.mechanism import Mechanism, digest_of_options, hash_of, resume_ledger, save_ledger
from mllm.errors import ConfigError


def mechanism(**changes):
    return Mechanism(
        **dict(units=100, sample_rate=0.1, clip_norm=1.0, delta=1e-3, target_epsilon=3.0, accountant="rdp") | changes
    )


def test_the_noise_spends_the_target_over_the_planned_updates():
    planned = mechanism().with_noise(50)
    spent = epsilon_spent([(planned.sigma, 0.1, 50)], 1e-3, "rdp")
    assert 2.98 < spent <= 3.0
    assert planned.spent(Ledger([(planned.sigma, 0.1, 50)])) == spent
    assert planned.with_noise(500) is planned, "noise that is set stays"
    assert planned.expected_units == 10


@settings(max_examples=12, deadline=None)
@given(
    target=st.floats(0.5, 12),
    sigma=st.floats(0.6, 4),
    rate=st.floats(0.01, 1),
    before=st.integers(0, 30),
    updates=st.integers(0, 60),
)
def test_one_more_than_the_affordable_updates_exceeds_the_target(target, sigma, rate, before, updates):
    planned = mechanism(sample_rate=rate, target_epsilon=target, noise_multiplier=sigma)
    ledger = Ledger([(1.3, rate, before)])
    steps = planned.affordable(ledger, updates)
    assert 0 <= steps <= updates

    def spent(more):
        return epsilon_spent([*ledger.entries, (sigma, rate, more)], 1e-3, "rdp")

    assert steps == 0 or spent(steps) <= target
    assert steps == updates or spent(steps + 1) > target


def test_without_a_target_every_update_is_affordable():
    assert mechanism(target_epsilon=None, noise_multiplier=0.1).affordable(Ledger([(0.1, 0.1, 9)]), 1000) == 1000


def test_ledger_and_noise_are_restored_from_a_checkpoint(tmp_path):
    planned, ledger = mechanism().with_noise(20), Ledger([(1.7, 0.1, 12)])
    save_ledger(tmp_path, ledger, planned)
    read, again = resume_ledger(tmp_path, mechanism())
    assert (read, again) == (ledger, planned)
    _, louder = resume_ledger(tmp_path, mechanism(noise_multiplier=9.0))
    assert louder.sigma == 9.0, "noise that the config sets now is used, and counted as such"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (dict(units=99), "units in the training data is 99, but 100 in"),
        (dict(sample_rate=0.2), "the sample rate is 0.2, but 0.1 in"),
        (dict(unit="patient"), "privacy_args.unit is patient, but sample in"),
        (dict(data="other"), "data_args.train differs from that in"),
        (dict(content="a1"), "the hash of the training files differs from that in"),
        (dict(test_noise_seed=4), "privacy_args.test_noise_seed is 4, but None in"),
    ],
)
def test_a_resume_with_other_data_or_sampling_is_refused(tmp_path, change, difference):
    save_ledger(tmp_path, Ledger(), mechanism(noise_multiplier=1.0))
    with pytest.raises(ConfigError) as error:
        resume_ledger(tmp_path, mechanism(**change))
    assert str(error.value) == (
        f"--resume: {difference} {tmp_path}, and all updates in a ledger must have "
        "the same data and rate: restore the value, or start a new run without --resume"
    )


def test_a_ledger_with_the_options_of_the_training_split_is_continued(tmp_path):
    """Older versions wrote the options, which contain paths of the data, instead of their hash."""
    options = dict(type="VQADataset", data_path="rows.jsonl")
    save_ledger(tmp_path, Ledger(), mechanism(noise_multiplier=1.0, data=repr(options)))
    resume_ledger(tmp_path, mechanism(data=digest_of_options(options)))
    with pytest.raises(ConfigError, match="data_args.train differs"):
        resume_ledger(tmp_path, mechanism(data=digest_of_options(dict(options, data_path="other.jsonl"))))


def test_the_file_keeps_every_digit(tmp_path):
    save_ledger(tmp_path, Ledger([(1 / 3, 0.1, 2)]), mechanism(noise_multiplier=1 / 3))
    state = json.loads((tmp_path / "ledger.json").read_text())
    assert state["ledger"]["entries"][0]["noise_multiplier"] == state["mechanism"]["noise_multiplier"] == 1 / 3


def test_the_hash_of_files_depends_on_their_contents(tmp_path):
    file, folder = tmp_path / "rows.jsonl", tmp_path / "images"
    folder.mkdir()
    file.write_text("one\n")
    (folder / "a.png").write_bytes(b"1")
    first = hash_of([file, folder])
    assert hash_of([file, folder]) == first != hash_of([file])
    assert hash_of([tmp_path / "on/the/hub"]) == hash_of([])
    file.write_text("two\n")
    second = hash_of([file, folder])
    (folder / "b.png").write_bytes(b"1")
    assert len({first, second, hash_of([file, folder])}) == 3
