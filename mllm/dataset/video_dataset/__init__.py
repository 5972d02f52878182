"""Datasets of videos; every file in this folder is imported, so a new one is registered by being there."""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
