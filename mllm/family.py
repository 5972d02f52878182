"""Record of a model family, which contains all knowledge about one model type, and the table of all families."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mllm.errors import ConfigError, hint


@dataclass(frozen=True)
class LazyFunction:
    """Function that is imported from `path` (`module:function`) when it is called, to keep imports of records fast."""

    path: str

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Import the function and call it."""
        module, _, name = self.path.partition(":")
        return vars(importlib.import_module(module))[name](*args, **options)


Options = type[Any]
"""A dataclass of options."""


@dataclass(frozen=True)
class Terms:
    """Terms of use of a base model."""

    name: str
    """Identifier on the Hugging Face Hub (`license_name`)."""
    link: str
    notice: str
    license: str = "other"
    """Identifier of the license on the Hub (`license`)."""


@dataclass(frozen=True)
class Family:
    """All knowledge about one model type.

    `args` is an instance of `options`, `config` a `RunConfig`. Records import neither torch nor transformers; heavy
    modules are imported by a `LazyFunction`. The defaults suit a model of transformers that reads images in a chat.
    """

    type: str
    """Value of `model_args.type`."""
    options: Options
    """Frozen dataclass of the keys of `model_args`: `ModelArgs` and the keys that only this family has."""
    load: Callable[..., Any]
    """args, hardware, processor -> model of transformers, frozen."""
    towers: Callable[..., Mapping[str, str]]
    """model -> prefixes of module names: language, vision, projector, ..."""
    lora_targets: Callable[..., Mapping[str, str]]
    """model -> regular expression over full module names, for each name that `lora_target` accepts."""
    tiny: Mapping[str, Callable[..., Any]]
    """Name of a tiny checkpoint -> function (seed, text, vision) -> (model, processor)."""
    processor: Callable[..., Any] = LazyFunction("mllm.models.builder.build_chat:load_chat_processor")
    """args -> processor: tokenizer, image processor and chat template."""
    encoder: Callable[..., Any] = LazyFunction("mllm.models.auto.load:build_encoder")
    """args, processor -> encoder of samples, for training, prediction and `show sample`."""
    skeleton: Callable[..., Any] | None = LazyFunction("mllm.models.auto.load:build_skeleton")
    """args -> the same model on `meta`, without weights; None: it depends on more than one checkpoint."""
    stand_in: Callable[[str], str] | None = None
    """Checkpoint name -> name of the tiny checkpoint that replaces it; None: the first of `tiny`."""
    keep_unquantized: Callable[[int, Mapping[str, str]], list[str]] = lambda bits, towers: ["lm_head"]
    """bits (4 or 8), towers -> prefixes of the modules that are not quantized."""
    assemble: Callable[..., Any] = LazyFunction("mllm.models.builder.build_shared:assemble")
    """family, model, processor, args, hardware -> trainable model, with adapter and heads."""
    layers: str = ""
    """Path of the sequence of layers of the vision tower, for records of a vision part."""
    model_types: frozenset[str] = frozenset()
    """Architectures (`model_type` in config.json) that it reads; empty: all that the Auto class loads."""
    chosen_for: Callable[[str | None], bool] = lambda model_type: False
    """model_type (None: unknown) -> True if commands without a type use this family for the architecture."""
    unsupported_keys: frozenset[str] = frozenset()
    """Keys of `ModelArgs` that this family does not support; they are refused."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of keys of `model_args` that a config leaves None or empty."""
    complete: Mapping[str, Any] = field(default_factory=dict)
    """Values of the family's own keys for a checkpoint that needs no second one, such as a merged model."""
    rules: tuple[Callable[..., None], ...] = ()
    """Functions (config, checkpoint) that raise `ConfigError` for settings that cannot work with this family."""
    trains_lora: Callable[[Any], bool] = lambda args: not args.train_vision
    """args -> True if they train a LoRA."""
    trains_projector: Callable[[Any], bool] = lambda args: False
    """args -> True if they train the projector between vision and language, in full and in fp32."""
    vision: Family | None = None
    """The record used with `part='vision'`."""
    reads_images: bool = True
    cannot_pack: str | None = None
    """Reason why `data_args.packing` is not exact; None: it is, for architectures that were tested."""
    cannot_quantize: str | None = None
    """Reason why 4 and 8 bits do not apply; None: they do."""
    memory_keys: tuple[str, ...] = ()
    """Keys of `model_args` that lower memory, in the order in which they are recommended."""
    hub_task: str = "image-text-to-text"
    """Task on the Hugging Face Hub (`pipeline_tag`)."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """Architecture -> its name in messages."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Part of a checkpoint's name -> name in messages, if its config.json is not on this machine."""
    terms: Mapping[str, Terms] = field(default_factory=dict)
    """Part of a base model's name -> its terms; the last terms apply to other checkpoints of the family."""
    download: Mapping[str, str] = field(default_factory=dict)
    """Part of a checkpoint's name -> command that downloads it."""
    image_note: Callable[[Mapping[str, Any], str], str] = lambda settings, kind: ""
    """settings (`mllm.json`), kind of export -> paragraph of the model card about how images are encoded."""
    log_details: Callable[..., Any] | None = None
    """config -> function (rows, folder) -> further keys of `training_log.json`."""
    show_start: Callable[..., None] | None = None
    """config, hardware, environment, folder -> None: log the environment and the choices of a run at its start."""

    def has(self, key: str) -> bool:
        """Return True if the family supports a key of `model_args`."""
        return key in {item.name for item in fields(self.options)} and key not in self.unsupported_keys

    @property
    def own_keys(self) -> list[str]:
        """Names of the keys that `options` adds to those of its base class."""
        common = {item.name for item in fields(self.options.__mro__[-2])}
        return [item.name for item in fields(self.options) if item.name not in common]

    def tiny_name(self, checkpoint: str = "") -> str:
        """Return the name of the tiny checkpoint that replaces `checkpoint`."""
        return next(iter(self.tiny)) if self.stand_in is None else self.stand_in(checkpoint)

    def is_complete(self, args: Any) -> bool:
        """Return True if `args` name a checkpoint that needs no second one."""
        return all(vars(args)[key] == value for key, value in self.complete.items())


class Families:
    """Table of the families by type; `module` registers those of this package when the table is first read."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._records: dict[str, Family] = {}

    def register(self, family: Family) -> Family:
        """Add a record and return it."""
        self._records[family.type] = family
        return family

    def __iter__(self) -> Iterator[Family]:
        """Iterate over the records in the order of their registration."""
        importlib.import_module(self._module)
        return iter(list(self._records.values()))

    def find(self, name: str, part: str | None = None) -> Family:
        """Return the record of a type, or of its part 'vision' if it has one.

        Raises:
            ConfigError: The type is unknown; the message names the nearest known types.
        """
        records = {family.type: family for family in self}
        if name not in records:
            raise ConfigError(f"unknown type '{name}' in registry models{hint(name, records)}")
        family = records[name]
        return family if part is None or family.vision is None else family.vision

    def types_with(self, key: str) -> list[str]:
        """Return the types that have a key of `model_args`."""
        return [family.type for family in self if family.has(key)]

    def for_architecture(self, model_type: str | None) -> Family:
        """Return the record for an architecture if no type is set; the latest registration takes precedence."""
        return next(family for family in reversed(list(self)) if family.chosen_for(model_type))

    def title(self, model_type: str) -> str:
        """Return the name of an architecture in messages."""
        titles = {key: title for family in self for key, title in family.titles.items()}
        return titles.get(model_type, model_type)

    def look_up(self, table: Literal["names", "terms", "download"], checkpoint: str) -> Any:
        """Return the value in a table of any record whose key is part of a checkpoint's name, or None."""
        entries = (entry for family in self for entry in vars(family)[table].items())
        return next((value for part, value in entries if part in checkpoint.lower()), None)


FAMILIES = Families("mllm.models.families")
"""Model families by type."""
