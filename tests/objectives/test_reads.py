"""Tests of the heads and teacher outputs that objectives declare."""

import subprocess
import sys

import pytest

from mllm.registry import OBJECTIVES

DECLARED = {
    "NextToken": (None, None),
    "BoxLoss": ("box", None),
    "MaskLoss": ("mask", None),
    "MeasureLoss": ("measures", None),
    "VolumeConsistency": ("measures", None),
    "FeatureMatch": (None, "features"),
    "LogitMatch": (None, "logits"),
}


@pytest.mark.parametrize("name", DECLARED)
def test_an_objective_declares_its_inputs(name):
    attributes = OBJECTIVES.describe(name).attributes
    assert (attributes["reads"], attributes["teacher"]) == DECLARED[name]
    objective = OBJECTIVES.find(name)
    assert (objective.reads, objective.teacher) == DECLARED[name]


def test_only_volume_consistency_reads_no_targets_of_its_head():
    attributes = {name: OBJECTIVES.describe(name).attributes for name in DECLARED}
    assert [name for name, values in attributes.items() if not values["reads_targets"]] == ["VolumeConsistency"]


def test_every_objective_is_covered():
    assert {name for name in OBJECTIVES.names() if name in OBJECTIVES.locations} == set(DECLARED)


def test_declarations_are_read_without_pytorch():
    code = (
        "import sys; from mllm.registry import OBJECTIVES; "
        "print([OBJECTIVES.describe(name).attributes['reads'] for name in OBJECTIVES.names()]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
