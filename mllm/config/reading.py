"""Reading a config: mmengine's syntax, a closed schema, and a sentence with file and line for what is wrong.

Paths inside a config are relative to the current directory; a base's path is relative to the file that names it, or
absolute. Names that begin with '_' are helper variables of the file. `{{fileBasenameNoExtension}}` is the name of the
file that holds it, so in a base it is the base's.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mllm.config import checking
from mllm.config.hardware import CHECKOUT
from mllm.config.origins import OPTIONS, Place, Places, read_places, shown
from mllm.config.rules import distillation as distill_rules
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError, near

CONFIGS = CHECKOUT / "config" / "training_configs"


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a config file and applies overrides such as `model_args.lora_r=8`.

    Raises `ConfigError` where the file cannot be found or run, where a key or type is unknown, or a value has a wrong
    type. The registries must be filled before: a dataset's keys are checked against the signature of its class.
    """
    path = _existing(path)
    places = read_places(path)
    checking.refuse_unknown_top_level([key[0] for key in places.written], places)
    merged = _merged(path, places, overrides)
    checking.refuse_unknown_top_level(merged, places)
    merged = {key: value for key, value in merged.items() if not key.startswith("_")}
    checking.refuse_what_has_no_source(merged, (), places)
    checking.refuse_wrong_scalars(merged, places)
    custom_imports = _import_custom(checking.section(merged, "custom_imports", places), places)
    privacy_args = checking.privacy_args(merged, places)
    return RunConfig(
        model_args=checking.model_args(checking.section(merged, "model_args", places), places),
        data_args=checking.data_args(checking.section(merged, "data_args", places), places),
        training_args=checking.training_args(
            checking.section(merged, "training_args", places), places, is_private=privacy_args is not None
        ),
        objectives=checking.objectives(checking.section(merged, "objectives", places), places),
        export_args=checking.export_args(checking.section(merged, "export_args", places), places),
        distill_args=distill_rules.distill_args(merged, places),
        privacy_args=privacy_args,
        hardware=checking.hardware(checking.section(merged, "hardware", places), places),
        custom_imports=custom_imports,
        name=_name(merged, path, places),
        path=path,
        tiny=bool(merged.get("tiny", False)),
        places=places,
    )


def _existing(path: str | Path) -> Path:
    """The absolute path of a config; an unknown one is answered with near names."""
    file = Path(path).expanduser()
    if file.suffix == ".py" and file.is_file():
        return file.absolute()
    if file.exists():
        raise ConfigError(f"config '{path}' is not a Python file")
    shipped = {config.stem: config for config in sorted(CONFIGS.glob("*.py"))}
    candidates = near(file.stem, shipped) or list(shipped)
    listed = ", ".join(shown(shipped[name]) for name in candidates)
    raise ConfigError(f"config '{path}' not found" + (f": did you mean {listed}?" if listed else ""))


def _name(merged: Mapping[str, Any], path: Path, places: Places) -> str:
    """The run's name; a base's `name` is its own."""
    writer = places.find(("name",))
    if writer is None or writer.file not in (path, None):
        return path.stem
    name = str(merged["name"])
    if not name.strip(". ") or "/" in name or "\\" in name:
        raise ConfigError(
            f"{writer}: name={name!r} cannot be the name of a folder, and runs lie in exp/<name>; other places belong "
            "into training_args.output_dir"
        )
    return name


def _merged(path: Path, places: Places, overrides: Sequence[str]) -> dict[str, Any]:
    """The config as mmengine merges it, as plain dicts; what goes wrong on the way becomes a `ConfigError`."""
    changes = dict(_parse_override(override) for override in overrides)
    try:
        config = Config.fromfile(path, import_custom_modules=False, lazy_import=False)
    except Exception as error:
        raise ConfigError(_explained(error, places.files, shown(path))) from error
    for key, value in changes.items():
        _refuse_inside_of_no_dict(key.split("."), config.to_dict())
        _write_override(tuple(key.split(".")), value, places)
    try:
        config.merge_from_dict(changes)
    except Exception as error:
        raise ConfigError(f"{OPTIONS}: {_kept_type(error)}") from error
    return _plain(config.to_dict())


def _explained(error: Exception, files: Sequence[Path], fallback: str) -> str:
    """`FILE:LINE: NameError: ...` with the last line of the user's own files that ran."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown(Path(error.filename))}:{error.lineno}: SyntaxError: {error.msg}"
    names = {str(file) for file in files}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in names]
    place = f"{shown(Path(frames[-1].filename))}:{frames[-1].lineno}" if frames else fallback
    return f"{place}: {_kept_type(error)}"


def _kept_type(error: Exception) -> str:
    """An exception as its class and message, on one line."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{type(error).__name__}: {' '.join(message.split())}"


def _plain(value: Any) -> Any:
    """A value without mmengine's own keys and dict classes."""
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items() if key not in ("_delete_", "_scope_")}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(child) for child in value)
    return value


def _parse_override(override: str) -> tuple[str, Any]:
    """`a.b=c` as a key and a value.

    Unlike mmengine's own parser it keeps blanks in a text and brackets in a regular expression: `c` is a Python
    literal, true or false, a list such as `a,b` or `[a, b]`, or else text.
    """
    key, equals, text = override.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"{OPTIONS}: '{override}' must have the form key.key=value, such as model_args.lora_r=8")
    return key.strip(), _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"\[[^\[\]]*\]", text):
        return [_parse_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    if re.fullmatch(r"[\w./:-]+(,[\w./:-]+)+", text):
        return [_parse_value(part) for part in text.split(",")]
    return text


def _refuse_inside_of_no_dict(key: Sequence[str], value: Any) -> None:
    """Refuses `model_args.lora_r.x=3` where `model_args.lora_r` is a number."""
    for depth, name in enumerate(key):
        if not isinstance(value, (Mapping, list)):
            raise ConfigError(f"{OPTIONS}: {'.'.join(key[:depth])} is {value!r}, so it holds no '{name}' to set")
        if isinstance(value, list) or name not in value:
            return
        value = value[name]


def _write_override(key: tuple[str, ...], value: Any, places: Places) -> None:
    place = Place(None, 0, len(places.files))
    for length in range(1, len(key)):
        places.written.setdefault(key[:length], place)
    if key[-1] == "_delete_":
        places.write(key[:-1], place)
        return
    places.write(key, place, keeps_children=isinstance(value, Mapping))
    if isinstance(value, Mapping):
        for name, child in value.items():
            _write_override((*key, str(name)), child, places)


def _import_custom(values: dict[str, Any], places: Places) -> dict[str, Any]:
    """Imports the modules of `custom_imports`, found beside the config that names them or in the current directory."""
    if not values:
        return {}
    known = ("imports", "folders", "allow_failed_imports")
    for key in values:
        if key not in known:
            place = places.of("custom_imports", key)
            raise ConfigError(f"{place}: unknown key '{key}' in custom_imports{checking.hint(key, known)}")
    modules = _names(values.get("imports", []), "imports", places)
    folders = _names(values.get("folders", []), "folders", places)
    writer = places.find(("custom_imports", "imports"))
    if not folders:
        folders = [str(Path.cwd())]
        if writer is not None and writer.file is not None:
            folders = [str(writer.file.parent)]
    for folder in (*folders, str(Path.cwd())):
        if folder not in sys.path:
            # At the end: a file beside a config must not hide an installed package.
            sys.path.append(folder)
    for module in modules:
        _import(module, folders, places, bool(values.get("allow_failed_imports", False)))
    return {"imports": modules, "folders": folders}


def _names(value: Any, key: str, places: Places) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{places.of('custom_imports', key)}: custom_imports.{key} must be text or a list of text, not {value!r}"
        )
    return list(names)


def _import(module: str, folders: Sequence[str], places: Places, may_fail: bool) -> None:
    place = places.of("custom_imports", "imports")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if may_fail:
            return
        if error.name == module:
            raise ConfigError(
                f"{place}: custom_imports finds no module '{module}'; "
                f"it was sought in {', '.join(folders)} and on PYTHONPATH"
            ) from error
        raise ConfigError(f"{place}: custom_imports of '{module}' failed: {error}") from error
    except Exception as error:
        if may_fail and isinstance(error, ImportError):
            return
        raise ConfigError(_explained(error, _files_below(folders), place)) from error


def _files_below(folders: Sequence[str]) -> list[Path]:
    """The Python files that an error in a custom module may come from."""
    return [file for folder in folders for file in Path(folder).glob("*.py")]
