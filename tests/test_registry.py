"""Registries, and the check and construction of their entries."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mllm.errors import ConfigError
from mllm.options import format_type
from mllm.registry import ALL, DATASETS, HEADS, OBJECTIVES, TRANSFORMS, OptionError, Registry, build, check
from mllm.signatures import signature_of
from mllm.static_source import UnresolvedError, read_signature

LAZY = [(registry, name) for registry in ALL for name in registry.locations]


class Animal:
    """An animal.

    It has legs.
    """

    reads = "grass"

    def __init__(self, legs: int = 4) -> None:
        self.legs = legs


class Horse(Animal):
    def __init__(self, name: str, width: int = 0, **options: Any) -> None:
        if name == "":
            raise ConfigError("the name is empty")
        super().__init__(**options)
        self.name, self.width = name, width


class Open:
    def __init__(self, **options: Any) -> None:
        self.options = options


class Herd:
    def __init__(self, animals: list[Any]) -> None:
        self.animals = animals


@pytest.fixture
def animals() -> Registry:
    registry = Registry("animals", "name -> animal")
    for entry in (Animal, Horse, Open, Herd):
        registry.register_module(module=entry)
    return registry


def test_a_name_finds_its_entry(animals):
    assert animals.find("Horse") is Horse
    assert animals.names() == ["Animal", "Herd", "Horse", "Open"]


@pytest.mark.parametrize(
    ("name", "tail"), [("Hrose", ": did you mean 'Horse'?"), ("zebrafish", "; known are Animal, Herd, Horse, Open")]
)
def test_the_message_about_an_unknown_name_lists_known_names(animals, name, tail):
    with pytest.raises(ConfigError) as error:
        animals.find(name)
    assert str(error.value) == f"unknown type '{name}' in registry animals{tail}"


def test_every_registry_has_entries_and_a_description():
    for registry in ALL:
        assert registry.names(), registry.name
        assert "->" in registry.description
    assert OBJECTIVES.describe("NextToken").summary
    assert set(HEADS.names()) == {"BoxHead", "MaskHead", "RegressionHead"}


def test_an_entry_of_one_registry_is_not_in_another():
    with pytest.raises(ConfigError, match="unknown type 'BoxHead' in registry objectives"):
        OBJECTIVES.find("BoxHead")


def test_a_signature_includes_base_classes_while_kwargs_are_passed_on(animals):
    signature = animals.describe("Horse")
    assert list(signature.parameters) == ["name", "width", "legs"]
    assert signature.required() == ["name"]
    assert not signature.accepts_any
    assert signature.attributes["reads"] == "grass"
    assert animals.describe("Animal").summary == "An animal."
    assert animals.describe("Open").accepts_any


@pytest.mark.parametrize(("registry", "name"), LAZY, ids=[f"{registry.name}-{name}" for registry, name in LAZY])
def test_the_source_has_the_signature_of_the_imported_entry(registry, name):
    imported = signature_of(registry.locations[name].load())
    try:
        read = read_signature(registry.locations[name])
    except UnresolvedError:
        assert registry is DATASETS, "only datasets may need an import"
        return
    assert read.doc == imported.doc
    assert read.accepts_any == imported.accepts_any
    assert list(read.parameters) == list(imported.parameters)
    for key, item in read.parameters.items():
        other = imported.parameters[key]
        assert (item.kind, item.default) == (other.kind, other.default), key
        # Types of packages that are not imported are replaced by `object`; neither is checked.
        assert format_type(item.annotation) == format_type(other.annotation), key
    assert read.attributes.items() <= imported.attributes.items()


def test_describing_entries_does_not_import_them():
    program = (
        "import sys; from mllm.registry import ALL, DATASETS\n"
        "[registry.describe(name) for registry in ALL if registry is not DATASETS for name in registry.names()]\n"
        "print(*sorted({'torch', 'transformers', 'mllm.objectives', 'mllm.models'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_a_replaced_entry_stays_when_its_original_is_imported(monkeypatch):
    original = HEADS.find("BoxHead")
    monkeypatch.delitem(HEADS.module_dict, "BoxHead")
    with pytest.raises(KeyError, match="BoxHead is already registered in heads"):
        HEADS.register_module(name="BoxHead", module=Animal)
    HEADS.register_module(name="BoxHead", module=Animal, force=True)
    HEADS.register_module(module=original)
    assert HEADS.find("BoxHead") is Animal


def test_build_passes_options_and_provided_arguments(animals):
    horse = build(animals, {"type": "Horse", "name": "Ada", "legs": 3}, width=8)
    assert (horse.name, horse.width, horse.legs) == ("Ada", 8, 3)
    assert build(animals, {"type": "Open", "x": 1}).options == {"x": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Ada"}, "farm must be a dict with a 'type', not {'name': 'Ada'}"),
        ({"type": 3}, "farm.type must be text, not 3"),
        ({"type": "Hors"}, "unknown type 'Hors' in registry animals: did you mean 'Horse'? (farm)"),
        ({"type": "Horse"}, "farm (Horse) needs the key 'name'"),
        ({"type": "Horse", "name": "Ada", "leg": 3}, "unknown key 'leg' in farm (Horse): did you mean 'legs'?"),
        ({"type": "Horse", "name": "Ada", "legs": "3"}, "farm.legs must be an integer, not '3'"),
        ({"type": "Horse", "name": ""}, "farm (Horse): the name is empty"),
        (
            {"type": "Herd", "animals": [{"type": "Horse"}]},
            "farm.animals.0 (Horse) needs the key 'name'",
        ),
    ],
)
def test_build_refuses_invalid_options(animals, options, message):
    with pytest.raises(ConfigError) as error:
        build(animals, options, "farm")
    assert str(error.value) == message


def test_an_option_that_the_program_provides_is_refused(animals):
    with pytest.raises(OptionError, match="unknown key 'width'") as error:
        check(animals, {"type": "Horse", "name": "Ada", "width": 8}, ("farm",), provided=("width",))
    assert error.value.key == ("farm", "width")


def test_transforms_are_entries_of_their_own_registry(animals):
    options = {"type": "Open", "transforms": [{"type": "RandomFlip", "probability": "often"}]}
    with pytest.raises(OptionError) as error:
        check(animals, options, ("farm",))
    assert error.value.key == ("farm", "transforms", "0", "probability")
    assert "RandomFlip" in TRANSFORMS.names()


class Patient:
    assignable = ("seed",)

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed


class Visit(Patient):
    def __init__(self, day: int) -> None:
        super().__init__()
        self.day = day


def test_an_assignable_option_of_a_base_class_is_set_after_construction():
    registry = Registry("visits", "name -> visit")
    registry.register_module(module=Visit)
    signature = registry.describe("Visit")
    assert list(signature.parameters) == ["day", "seed"]
    assert signature.assigned == {"seed"}
    visit = build(registry, {"type": "Visit", "day": 3, "seed": 5})
    assert (visit.day, visit.seed) == (3, 5)
    with pytest.raises(OptionError, match="seed must be an integer"):
        build(registry, {"type": "Visit", "day": 3, "seed": "x"})
