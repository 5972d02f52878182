"""Checks of the dicts with a `type` in a config, with FILE:LINE in their messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mllm import registry as registries
from mllm.config.origins import Key, Origins, display_path
from mllm.config.renamed import OPTIONS
from mllm.errors import ConfigError
from mllm.registry import OptionError, Registry, UnknownOptionError
from mllm.signatures import Signature


def check_entry(
    options: Any, registry: Registry, key: Key, origins: Origins, provided: Collection[str] = ()
) -> dict[str, Any]:
    """Check a dict with a `type` at `key` against the signature of its entry; see `mllm.registry.check`.

    Raises:
        ConfigError: An option is invalid; the message begins with the FILE:LINE that wrote it.
    """
    try:
        return registries.check(registry, _rename_options(options, registry, key, origins), key, provided)
    except UnknownOptionError as error:
        raise ConfigError(_unknown_options(error, origins)) from None
    except OptionError as error:
        raise ConfigError(f"{origins.of(*error.key)}: {error}") from None


def describe_entry(registry: Registry, name: Any, key: Key, origins: Origins) -> Signature:
    """Return the signature of the entry that a config names at `key`.

    Raises:
        ConfigError: The name is unknown; the message begins with the FILE:LINE that wrote it.
    """
    try:
        return registries.describe(registry, name, key)
    except OptionError as error:
        raise ConfigError(f"{origins.of(*error.key)}: {error}") from None


def _rename_options(options: Any, registry: Registry, key: Key, origins: Origins) -> Any:
    """Rename old options to their current names, also in nested dicts, if the entry has no parameter of the old name.

    Raises:
        ConfigError: Two options mean the same; the message begins with the FILE:LINE of one of them.
    """
    if isinstance(options, (list, tuple)):
        return type(options)(
            _rename_options(item, registry, (*key, str(index)), origins) for index, item in enumerate(options)
        )
    if not (isinstance(options, Mapping) and "type" in options):
        return options
    renamed = {name: _rename_options(value, registry, (*key, name), origins) for name, value in options.items()}
    for old, new in OPTIONS.items():
        if old in renamed and old not in describe_entry(registry, renamed["type"], (*key, "type"), origins).parameters:
            _refuse_both(renamed, key, old, new, origins)
            origin = origins.written.get((*key, old))
            if origin is not None:
                origins.write((*key, new), origin)
            renamed = {(new if name == old else name): value for name, value in renamed.items()}
    if isinstance(renamed.get("columns"), Mapping) and "patient" in renamed["columns"]:
        _refuse_both(renamed, key, "columns", "patient_column", origins, "columns['patient']")
    return renamed


def _refuse_both(
    options: Mapping[str, Any], key: Key, old: str, new: str, origins: Origins, name: str | None = None
) -> None:
    """Raise `ConfigError` if an entry has an option and another one that means the same.

    Args:
        options: Options of the entry.
        key: Path of the entry in the config.
        old: The option.
        new: Option to keep.
        origins: Files and lines of the keys.
        name: Name of the first option in the message; None: `old`.
    """
    if new in options:
        raise ConfigError(
            f"{origins.of(*key, old)}: {'.'.join(key)} has both {name or repr(old)} and '{new}' "
            f"({origins.of(*key, new)}), which mean the same: keep '{new}'"
        )


def _unknown_options(error: UnknownOptionError, origins: Origins) -> str:
    """Return the message about options that an entry does not have.

    Options that come from a base config with another type are reported as such.
    """
    key = error.parent
    type_origin = origins.find((*key, "type"))
    for name in error.names:
        origin = origins.find((*key, name))
        if origin is None or type_origin is None or origin.rank >= type_origin.rank:
            return f"{origins.of(*key, name)}: {error.message(name)}"
    assert type_origin is not None
    entry = ".".join(key)
    if type_origin.file is not None:
        fix = f"_delete_=True to {entry} in {display_path(type_origin.file)}"
    else:
        fix = f"{entry}._delete_=True to --cfg-options"
    names = ", ".join(f"'{name}'" for name in error.names)
    pronoun = "it" if len(error.names) == 1 else "them"
    return (
        f"{origins.of(*key, error.names[0])}: {names} in {entry} come from this base: the type is now "
        f"'{error.type_name}' ({type_origin}), which does not accept {pronoun}: add {fix}"
    )
