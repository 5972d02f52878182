"""Imports of the modules that a config names in `custom_imports`, which register datasets and other parts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.config.merging import format_error
from mllm.config.origins import Origins
from mllm.errors import ConfigError, hint

KEYS = ("imports", "folders", "allow_failed_imports")


def import_modules(values: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """Import the modules of `custom_imports` and return its resolved values.

    Modules are searched in `folders`, or else in the folder of the config that names them, in the current directory
    and on PYTHONPATH.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type, or a module cannot be imported.
    """
    if not values:
        return {}
    for key in values:
        if key not in KEYS:
            raise ConfigError(
                f"{origins.of('custom_imports', key)}: unknown key '{key}' in custom_imports{hint(key, KEYS)}"
            )
    modules = _names(values.get("imports", []), "imports", origins)
    folders = _names(values.get("folders", []), "folders", origins)
    origin = origins.find(("custom_imports", "imports"))
    if not folders:
        is_file = origin is not None and origin.file is not None
        folders = [str(origin.file.parent)] if is_file else [str(Path.cwd())]  # type: ignore[union-attr]
    for folder in (*folders, str(Path.cwd())):
        if folder not in sys.path:
            # Appended, so that a file beside a config does not hide an installed package.
            sys.path.append(folder)
    for module in modules:
        _import_module(module, folders, origins, bool(values.get("allow_failed_imports", False)))
    return {"imports": modules, "folders": folders}


def _names(value: Any, key: str, origins: Origins) -> list[str]:
    """Return a text or a list of texts as a list."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{origins.of('custom_imports', key)}: custom_imports.{key} must be text or a list of text, not {value!r}"
        )
    return list(names)


def _import_module(module: str, folders: Sequence[str], origins: Origins, may_fail: bool) -> None:
    origin = origins.of("custom_imports", "imports")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if may_fail:
            return
        if error.name == module:
            raise ConfigError(
                f"{origin}: custom_imports finds no module '{module}' in {', '.join(folders)} or on PYTHONPATH"
            ) from error
        raise ConfigError(f"{origin}: custom_imports of '{module}' failed: {error}") from error
    except Exception as error:
        if may_fail and isinstance(error, ImportError):
            return
        files = [file for folder in folders for file in Path(folder).glob("*.py")]
        raise ConfigError(format_error(error, files, origin)) from error
