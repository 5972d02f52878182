"""Options of a model type: its defaults, and the keys that it does not support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, replace
from typing import Any

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.family import FAMILIES, Family

COMMON_DEFAULTS = {"pad_to_square": False, "fuse_vision_layers": False}
"""Values of keys that are None in a config, for families that do not set them."""


def with_defaults(args: ModelArgs) -> ModelArgs:
    """Return `args` as the options of their type, with the defaults of the type for keys that are None or empty."""
    family = FAMILIES.find(args.type)
    options: ModelArgs = args if isinstance(args, family.options) else family.options(**asdict(args))
    values = {**COMMON_DEFAULTS, **family.defaults}
    return replace(options, **{key: value for key, value in values.items() if vars(options)[key] in (None, {})})


def make_model_args(type: str, **values: Any) -> ModelArgs:
    """Return the options of `type`, without keys of other families that have their default.

    Files of older versions contain the keys of all families. Raise `ConfigError` for other values of such keys.
    """
    family = FAMILIES.find(type)
    args: ModelArgs = family.options(type=type, **without_foreign_keys(values, family))
    return args


def without_foreign_keys(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return `values` without keys of other families at their default; raise `ConfigError` for other values."""
    supported = {item.name for item in fields(family.options)}
    options = {}
    for key, value in values.items():
        types = FAMILIES.types_with(key)
        if key in supported or not types:
            options[key] = value
        elif value != default_of(FAMILIES.find(types[0]), key):
            raise ConfigError(absence(family.type, key))
    return options


def absent_keys(args: ModelArgs) -> list[str]:
    """Return the keys of `args` that are set although their type does not support them."""
    family = FAMILIES.find(args.type)
    unsupported = family.unsupported_keys | FAMILIES.find(args.type, args.part).unsupported_keys
    return [key for key in sorted(unsupported) if vars(args)[key] and vars(args)[key] != family.defaults.get(key)]


def refuse_absent_keys(args: ModelArgs) -> None:
    """Raise `ConfigError` for a key that is set although the type of `args` does not support it."""
    for key in absent_keys(args):
        raise ConfigError(absence(args.type, key, args.part))


def absence(type: str, key: str, part: str | None = None) -> str:
    """Return the message about a key that a type, or a part of its model, does not support."""
    types = [f"'{supporting}'" for supporting in FAMILIES.types_with(key)]
    if f"'{type}'" in types:
        return f"model_args.{key} is not possible with part='{part}': images have the checkpoint's own size; remove it"
    names = " or ".join([", ".join(types[:-1]), types[-1]] if len(types) > 1 else types)
    return f"model_args.{key} is only possible with type={names}, and the type is '{type}': remove it"


def default_of(family: Family, key: str) -> Any:
    """Return the default of a key of a family's options."""
    item: Field[Any] = next(item for item in fields(family.options) if item.name == key)
    return item.default if item.default_factory is MISSING else item.default_factory()
