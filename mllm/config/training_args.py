"""Keys of `training_args` with types and defaults: `transformers.TrainingArguments` and `StoppingArgs`."""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib.util
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.version import Version

from mllm.config.schema import StoppingArgs

RUN_DEFAULTS: dict[str, Any] = {
    "report_to": ["tensorboard"],
    "logging_steps": 10,
    "dataloader_persistent_workers": True,
}
"""Defaults that differ from those of transformers."""
PRIVATE_DEFAULTS: dict[str, Any] = {"max_grad_norm": 0.0}
"""Defaults with `privacy_args`, where units are clipped instead of the gradient of the batch."""
FACTORIES = (list, dict)
"""Default factories that occur in `transformers.TrainingArguments`."""


@dataclass(frozen=True)
class TrainingField:
    """Type and default of one key."""

    annotation: Any
    default: Any


def fill_defaults(values: Mapping[str, Any], is_private: bool = False) -> dict[str, Any]:
    """Return `training_args` with the defaults of all keys that `values` leaves out.

    Args:
        values: Keys and values of a config; written keys come first in the result, in their order.
        is_private: True if the config has `privacy_args`.
    """
    defaults = {name: item.default for name, item in training_fields().items()}
    defaults |= RUN_DEFAULTS | (PRIVATE_DEFAULTS if is_private else {})
    return {**values, **{key: value for key, value in defaults.items() if key not in values}}


def changed_values(training_args: Mapping[str, Any], is_private: bool = False) -> dict[str, Any]:
    """Return the values that differ from their defaults."""
    defaults = fill_defaults({}, is_private)
    return {key: value for key, value in training_args.items() if key not in defaults or value != defaults[key]}


@functools.cache
def training_fields() -> dict[str, TrainingField]:
    """Return every key of `training_args` with its type and default.

    The fields of `transformers.TrainingArguments` are read from the source of the installed version, because importing
    the class imports PyTorch. The class is imported if its source cannot be read that way.
    """
    try:
        fields = read_fields()
    except (OSError, SyntaxError, NameError, TypeError, AttributeError, ValueError, StopIteration):
        fields = import_fields()
    return fields | _fields_of(StoppingArgs)


def import_fields() -> dict[str, TrainingField]:
    """Return the fields of `transformers.TrainingArguments` from the imported class."""
    from transformers import TrainingArguments

    return _with_fsdp(_fields_of(TrainingArguments))


def _with_fsdp(fields: dict[str, TrainingField]) -> dict[str, TrainingField]:
    """Let `fsdp` be True or a list, too. transformers recommends True; its annotation is for its command line."""
    return fields | {"fsdp": TrainingField(bool | str | list | None, fields["fsdp"].default)}


def _fields_of(cls: Any) -> dict[str, TrainingField]:
    hints = typing.get_type_hints(cls)
    return {
        item.name: TrainingField(
            hints[item.name], item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        )
        for item in dataclasses.fields(cls)
        if item.init
    }


def read_fields() -> dict[str, TrainingField]:
    """Return the fields of `transformers.TrainingArguments` from its source.

    Raises:
        OSError, SyntaxError, NameError, TypeError, AttributeError, ValueError, StopIteration: The source of this
            version of transformers has another form.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("transformers")
    reader = _Reader(Path(spec.origin).parent)
    return _with_fsdp(reader.fields("training_args", "TrainingArguments"))


class _Reader:
    """Reader of dataclasses and enums in the source of transformers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cache  # noqa: B019  (there is one short-lived reader)
    def parse(self, module: str) -> ast.Module:
        """Return the syntax tree of a module of transformers."""
        return ast.parse((self.folder / f"{module}.py").read_text(encoding="utf-8"))

    def fields(self, module: str, name: str) -> dict[str, TrainingField]:
        """Return the fields of a dataclass."""
        body = self._class(module, name).body
        local: dict[str, Any] = {}
        fields: dict[str, TrainingField] = {}
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                annotation = self._type(node.annotation, module)
                fields[node.target.id] = TrainingField(annotation, _default(node.value, local))
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                local |= {ast.unparse(target): node.value.value for target in node.targets}
            elif isinstance(node, ast.If):
                _run_conditions(node, local)
        return fields

    def _class(self, module: str, name: str) -> ast.ClassDef:
        return next(node for node in self.parse(module).body if isinstance(node, ast.ClassDef) and node.name == name)

    def _type(self, annotation: ast.expr, module: str) -> Any:
        """Return the type that an annotation names; types other than enums become `object`."""
        names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
        known = {"Any": Any, "Literal": typing.Literal, "None": None}
        known |= {kind.__name__: kind for kind in (bool, int, float, str, list, dict, tuple)}
        types = {name: known[name] if name in known else self._enum(name, module) for name in names}
        return eval(compile(ast.Expression(annotation), module, "eval"), {"__builtins__": {}}, types)

    def _enum(self, name: str, module: str) -> Any:
        """Return an enum with the members of the enum `name`; `object` if it is another class."""
        for node in self.parse(module).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                members = {
                    ast.unparse(item.targets[0]): ast.literal_eval(item.value)
                    for item in node.body
                    if isinstance(item, ast.Assign)
                }
                is_enum = any("Enum" in ast.unparse(base) for base in node.bases)
                return enum.Enum(name, members) if is_enum else object
            if isinstance(node, ast.ImportFrom) and node.level == 1 and name in {item.name for item in node.names}:
                return self._enum(name, str(node.module).replace(".", "/"))
        return object


def _default(value: ast.expr, local: Mapping[str, Any]) -> Any:
    """Return the default of a field written as `field(default=...)`, `field(default_factory=...)` or a literal."""
    if not isinstance(value, ast.Call):
        return ast.literal_eval(value)
    keywords = {keyword.arg: keyword.value for keyword in value.keywords}
    if "default_factory" in keywords:
        factories: dict[str, Callable[[], Any]] = {kind.__name__: kind for kind in FACTORIES}
        return factories[ast.unparse(keywords["default_factory"])]()
    default = keywords["default"]
    return local[default.id] if isinstance(default, ast.Name) else ast.literal_eval(default)


def _run_conditions(node: ast.If, local: dict[str, Any]) -> None:
    """Run a condition on the installed version of PyTorch in a class body, and the assignments below it."""
    test = ast.unparse(node.test)
    least = re.fullmatch(r"is_torch_greater_or_equal_than_(\d+)_(\d+)", test)
    if least:
        is_true = Version(metadata.version("torch")).release >= (int(least[1]), int(least[2]))
    elif test == "is_torch_available()":
        is_true = importlib.util.find_spec("torch") is not None
    else:
        raise ValueError(test)
    for child in node.body if is_true else node.orelse:
        if isinstance(child, ast.If):
            _run_conditions(child, local)
        elif isinstance(child, ast.Assign):
            local |= {ast.unparse(target): ast.literal_eval(child.value) for target in child.targets}
        elif not isinstance(child, ast.ImportFrom):
            raise ValueError(ast.unparse(child))
