"""Import of the optional packages that define metrics."""

from __future__ import annotations

import importlib
from types import ModuleType

from mllm.errors import ConfigError


def optional(module: str) -> ModuleType:
    """Import a module of a package of the extra `evaluation`.

    Raises:
        ConfigError: The package is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"the metric needs the package {package}: run pip install -e '.[evaluation]'") from error
