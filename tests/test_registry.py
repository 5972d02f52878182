"""Names find what answers to them, and near ones are told."""

import pytest

from mllm.errors import ConfigError
from mllm.registry import ALL, OBJECTIVES, Registry
from mllm.run.prepare import fill_registries


@pytest.fixture
def animals():
    registry = Registry("animals", "name -> animal")
    registry.register_module(name="horse", module=type("Horse", (), {}))
    registry.register_module(name="cow", module=type("Cow", (), {}))
    return registry


def test_a_name_finds_its_entry(animals):
    assert animals.find("cow").__name__ == "Cow"


@pytest.mark.parametrize(
    ("name", "tail"), [("hrose", ": did you mean 'horse'?"), ("zebrafish", "; known are cow, horse")]
)
def test_an_unknown_name_is_answered_with_known_ones(animals, name, tail):
    with pytest.raises(ConfigError) as error:
        animals.find(name)
    assert str(error.value) == f"unknown type '{name}' in registry animals{tail}"


def test_every_registry_is_filled_and_says_what_it_maps():
    fill_registries()
    for registry in ALL:
        assert registry.module_dict, registry.name
        assert "->" in registry.sentence
    assert OBJECTIVES.find("NextToken").__doc__.startswith("The cross-entropy")


def test_an_entry_of_one_registry_is_not_found_in_another(animals):
    fill_registries()
    with pytest.raises(ConfigError, match="unknown type 'horse' in registry objectives"):
        OBJECTIVES.find("horse")
