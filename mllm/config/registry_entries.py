"""A dict with a `type` in a config: an entry of a registry, and what its signature takes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

from mllm.config.origins import Key, Places, shown
from mllm.errors import ConfigError, hint
from mllm.options import fits, wrong_value
from mllm.registry import TRANSFORMS, Registry


def checked_entry(
    options: Any, registry: Registry, key: Key, places: Places, given: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Checks a dict with a `type` against the signature of the class of that name, and the dicts with a type in it.

    `given` are parameters that the model gives, and no config.
    """
    where = ".".join(key)
    if not isinstance(options, Mapping) or "type" not in options:
        raise ConfigError(f"{places.of(*key)}: {where} must be a dict with a 'type', not {options!r}")
    options = dict(options)
    entry = known_entry(registry, options["type"], (*key, "type"), places)
    parameters = {name: item for name, item in inspect.signature(entry).parameters.items() if name not in given}
    if "filename" in options and "filename" not in parameters:
        options = _renamed(options, key, places)
    if not any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
        unknown = [name for name in options if name != "type" and name not in parameters]
        _refuse_unknown_options(unknown, list(parameters), options["type"], key, places)
    for name, item in parameters.items():
        needed = item.default is item.empty and item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)
        if needed and name not in options:
            raise ConfigError(f"{places.of(*key)}: {where} ({options['type']}) needs the key '{name}'")
    hints = _annotations(entry)
    for name, value in options.items():
        if name in parameters and not fits(value, hints.get(name)):
            raise ConfigError(f"{places.of(*key, name)}: {where}.{name} {wrong_value(value, hints[name])}")
        inner = TRANSFORMS if name == "transforms" else registry
        options[name] = _checked_inside(value, inner, (*key, name), places)
    return options


def _annotations(entry: Any) -> dict[str, Any]:
    """The types of an entry's parameters; none where its file does not import what they name."""
    try:
        return typing.get_type_hints(entry.__init__ if inspect.isclass(entry) else entry)
    except NameError:
        return {}


def _checked_inside(value: Any, registry: Registry, key: Key, places: Places) -> Any:
    """The same for what a value holds: a dataset made of datasets, the transforms of a dataset."""
    if isinstance(value, Mapping) and "type" in value:
        return checked_entry(value, registry, key, places)
    if isinstance(value, (list, tuple)):
        return type(value)(
            _checked_inside(child, registry, (*key, str(index)), places) for index, child in enumerate(value)
        )
    return value


def _renamed(options: dict[str, Any], key: Key, places: Places) -> dict[str, Any]:
    """Shikra's `filename` as `data_path`."""
    if "data_path" in options:
        raise ConfigError(
            f"{places.of(*key, 'filename')}: {'.'.join(key)} has both 'filename' and 'data_path' "
            f"({places.of(*key, 'data_path')}), which mean the same: keep 'data_path'"
        )
    writer = places.written.get((*key, "filename"))
    if writer is not None:
        places.write((*key, "data_path"), writer)
    return {("data_path" if name == "filename" else name): value for name, value in options.items()}


def _refuse_unknown_options(unknown: list[str], known: list[str], type_name: str, key: Key, places: Places) -> None:
    """Refuses keys that a class does not accept; says so where they are left over from a base with another type."""
    if not unknown:
        return
    where = ".".join(key)
    writer = places.find((*key, "type"))
    for name in unknown:
        place = places.find((*key, name))
        if place is None or writer is None or place.rank >= writer.rank:
            raise ConfigError(
                f"{places.of(*key, name)}: unknown key '{name}' in {where} ({type_name}){hint(name, known)}"
            )
    if writer is not None and writer.file is not None:
        remedy = f"_delete_=True to {where} in {shown(writer.file)}"
    else:
        remedy = f"{where}._delete_=True to --cfg-options"
    names = ", ".join(f"'{name}'" for name in unknown)
    raise ConfigError(
        f"{places.of(*key, unknown[0])}: {names} in {where} left over from this base: the type is now '{type_name}' "
        f"({writer}), which does not accept {'it' if len(unknown) == 1 else 'them'}: add {remedy}"
    )


def known_entry(registry: Registry, name: Any, key: Key, places: Places) -> Any:
    """The entry of a registry that a key names; refuses an unknown one with the place that wrote it."""
    if not isinstance(name, str):
        raise ConfigError(f"{places.of(*key)}: {'.'.join(key)} must be text, not {name!r}")
    try:
        return registry.find(name)
    except ConfigError as error:
        raise ConfigError(f"{places.of(*key)}: {error} ({'.'.join(key[:-1])})") from None
