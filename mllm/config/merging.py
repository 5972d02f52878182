"""Merging of a config file with its bases and with overrides from the command line; mmengine evaluates the files."""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mllm.config.origins import OPTIONS, Origin, Origins, display_path
from mllm.errors import ConfigError

JSON_LITERALS = {"true": "True", "false": "False", "null": "None", "none": "None"}
"""Literals of other languages and their form in Python."""


def merge_config(path: Path, origins: Origins, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the merged config as plain dicts, without names that begin with '_'.

    Args:
        path: The config file.
        origins: Origins of its keys; those of the overrides are added.
        overrides: Assignments such as `model_args.lora_r=8`.

    Raises:
        ConfigError: A file cannot be evaluated, or an override cannot be merged.
    """
    changes = dict(parse_override(override) for override in overrides)
    try:
        config = Config.fromfile(path, import_custom_modules=False, lazy_import=False)
    except Exception as error:
        raise ConfigError(format_error(error, origins.files, display_path(path))) from error
    for key, value in changes.items():
        present = _present_value(key.split("."), config.to_dict())
        _record_override(tuple(key.split(".")), value, origins)
        if isinstance(value, dict) and not isinstance(present, Mapping):
            changes[key] = {**value, "_delete_": True}  # mmengine replaces nothing else by a dict
    try:
        config.merge_from_dict(changes)
    except Exception as error:
        raise ConfigError(f"{OPTIONS}: {_one_line(error)}") from error
    return {key: value for key, value in _plain(config.to_dict()).items() if not key.startswith("_")}


def format_error(error: Exception, files: Sequence[Path], fallback: str) -> str:
    """Return `FILE:LINE: NameError: ...` with the last line of `files` in the traceback, or with `fallback`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{display_path(Path(error.filename))}:{error.lineno}: SyntaxError: {error.msg}"
    names = {str(file) for file in files}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in names]
    origin = f"{display_path(Path(frames[-1].filename))}:{frames[-1].lineno}" if frames else fallback
    literal = JSON_LITERALS.get(error.name or "") if isinstance(error, NameError) else None
    return f"{origin}: {_one_line(error)}" + (f": write {literal}" if literal else "")


def parse_override(override: str) -> tuple[str, Any]:
    """Return key and value of `a.b=c`.

    `c` is a Python literal, true or false, a list such as `a,b` or `[a, b]`, or else a string. Unlike the parser of
    mmengine, this one keeps spaces in strings and brackets in regular expressions.
    """
    key, equals, text = override.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        colon = re.fullmatch(r"([A-Za-z_][\w.]*)\s*:\s*(.+)", override)
        tail = f": did you mean {colon[1]}={colon[2]}?" if colon else ", such as model_args.lora_r=8, without spaces"
        raise ConfigError(f"{OPTIONS}: '{override}' must have the form key.key=value{tail}")
    if ":" in key:
        raise ConfigError(
            f"{OPTIONS}: '{override}' has a colon in its key: did you mean {key.replace(':', '.')}={text}?"
        )
    return key.strip(), _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass  # a string without quotes
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"\[[^\[\]]*\]", text):
        return [_parse_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    if re.fullmatch(r"[\w./:-]+(,[\w./:-]+)+", text):
        return [_parse_value(part) for part in text.split(",")]
    return text


def _one_line(error: Exception) -> str:
    """Return the class and the message of an exception on one line."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{type(error).__name__}: {' '.join(message.split())}"


def _plain(value: Any) -> Any:
    """Return a value without the keys and dict classes of mmengine."""
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items() if key not in ("_delete_", "_scope_")}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(child) for child in value)
    return value


def _present_value(key: Sequence[str], value: Any) -> Any:
    """Return the value of a key in a config; None if it has none.

    Raises:
        ConfigError: The key is `model_args.lora_r.x`, and `model_args.lora_r` is a number, or a list without entry x.
    """
    for depth, name in enumerate(key):
        if not isinstance(value, (Mapping, list)):
            raise ConfigError(f"{OPTIONS}: {'.'.join(key[:depth])} is {value!r} and has no key '{name}'")
        if isinstance(value, list):
            known = name.isdecimal() and int(name) < len(value)
            if not known or depth == len(key) - 1:
                raise ConfigError(
                    f"{OPTIONS}: {'.'.join(key[:depth])} is a list of {len(value)}: set all of it, or a key of one "
                    "of its dicts by its number from 0"
                )
            value = value[int(name)]
        elif name in value:
            value = value[name]
        else:
            return None
    return value


def _record_override(key: tuple[str, ...], value: Any, origins: Origins) -> None:
    """Record the command line as the origin of a key and of all keys in its value."""
    origin = Origin(None, 0, len(origins.files))
    for length in range(1, len(key)):
        origins.written.setdefault(key[:length], origin)
    if key[-1] == "_delete_":
        origins.write(key[:-1], origin)
        return
    origins.write(key, origin, keeps_children=isinstance(value, Mapping))
    if isinstance(value, Mapping):
        for name, child in value.items():
            _record_override((*key, str(name)), child, origins)
