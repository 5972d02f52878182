"""The registries: a name in a config finds the class or function that answers to it."""

from __future__ import annotations

from typing import Any

from mmengine.registry import Registry as _Registry

from mllm.errors import ConfigError, hint


class Registry(_Registry):
    """A table from names to classes or functions, which answers an unknown name with the nearest known ones."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(name, scope="mllm")
        self.sentence = sentence
        """One sentence for `show.py registries`."""

    def find(self, name: str) -> Any:
        """The entry called `name`; raises `ConfigError` with the nearest known names where there is none."""
        if name not in self.module_dict:
            raise ConfigError(f"unknown type '{name}' in registry {self.name}{hint(name, self.module_dict)}")
        return self.module_dict[name]


MODELS = Registry("models", "type -> build(args, hardware) -> Bundle")
TRAINERS = Registry("trainers", "type -> build(learner, ...) -> Trainer")
DATASETS = Registry("datasets", "type -> dataset(**data_args[split])")
READERS = Registry("readers", "file suffix -> read(path, **options) -> list of PIL images")
TRANSFORMS = Registry("transforms", "type -> transform(image, marks, rng) -> (image, marks)")
BOX_FORMATS = Registry("box formats", "name -> how boxes and points stand in a text: .write, .read, .tokens")
HEADS = Registry("heads", "type -> Head(width, **options): reads an object out of a hidden state")
OBJECTIVES = Registry("objectives", "type -> Objective(weight, **options)")
METRICS = Registry("metrics", "name -> metric(predictions, references) -> dict of numbers; both are lists of Answer")
EXPORTERS = Registry("exporters", "name -> write(bundle, folder, **options) -> Path")

ALL = (MODELS, TRAINERS, DATASETS, READERS, TRANSFORMS, BOX_FORMATS, HEADS, OBJECTIVES, METRICS, EXPORTERS)
