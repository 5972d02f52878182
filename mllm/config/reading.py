"""Reading of a config file: origins of keys, merge, custom imports, check against the schema.

Paths inside a config are relative to the current directory; the path of a base is relative to the file that names it,
or absolute. Names that begin with '_' are helper variables of the file. `{{fileBasenameNoExtension}}` is the name of
the file that contains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.config.checking import check_names, check_sections, check_top_level, distill_args, section
from mllm.config.custom_imports import import_modules
from mllm.config.hardware import CHECKOUT
from mllm.config.merging import merge_config
from mllm.config.origins import Origins, display_path, read_origins
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError, nearest_names

CONFIGS = CHECKOUT / "config" / "training_configs"


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config of a file with all defaults.

    Args:
        path: A Python file.
        overrides: Assignments such as `model_args.lora_r=8`.

    Raises:
        ConfigError: The file does not exist or cannot be evaluated, a key or type is unknown, or a value is invalid.
    """
    path = _find_file(path)
    origins = read_origins(path)
    check_names([key[0] for key in origins.written], origins)  # before mmengine, which reserves some of these names
    merged = merge_config(path, origins, overrides)
    check_top_level(merged, origins)
    custom_imports = import_modules(section(merged, "custom_imports", origins), origins)
    return RunConfig(
        **check_sections(merged, origins),
        distill_args=distill_args(merged, origins),
        custom_imports=custom_imports,
        name=_run_name(merged, path, origins),
        path=path,
        tiny=bool(merged.get("tiny", False)),
        origins=origins,
    )


def _find_file(path: str | Path) -> Path:
    """Return the absolute path of a config; raise `ConfigError` with similar names if it does not exist."""
    file = Path(path).expanduser()
    if file.suffix == ".py" and file.is_file():
        return file.absolute()
    if file.exists():
        raise ConfigError(f"config '{path}' is not a Python file")
    shipped = {config.stem: config for config in sorted(CONFIGS.glob("*.py"))}
    neighbors = {config.stem: config for config in sorted(file.parent.glob("*.py"))}
    configs = {**shipped, **neighbors}
    candidates = nearest_names(file.stem, neighbors, count=1) or nearest_names(file.stem, configs) or list(shipped)
    listed = ", ".join(display_path(configs[name]) for name in candidates)
    raise ConfigError(f"config '{path}' not found" + (f": did you mean {listed}?" if listed else ""))


def _run_name(merged: Mapping[str, Any], path: Path, origins: Origins) -> str:
    """Return the name of the run: `name` of the file itself or of the command line, or else the name of the file."""
    origin = origins.find(("name",))
    if origin is None or origin.file not in (path, None):
        return path.stem
    name = str(merged["name"])
    if not name.strip(". ") or "/" in name or "\\" in name:
        raise ConfigError(
            f"{origin}: name={name!r} cannot be the name of a folder, and runs are written to exp/<name>; set "
            "training_args.output_dir to write to another folder"
        )
    return name
