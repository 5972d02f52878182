"""Signatures of registry entries: docstring, parameters and literal class attributes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LITERALS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Signature:
    """Docstring, parameters and literal class attributes of a class or a function."""

    doc: str
    """Docstring without indentation; empty if the entry has none."""
    parameters: Mapping[str, inspect.Parameter]
    """Named parameters. An annotation that cannot be resolved is `Any`."""
    accepts_any: bool
    """True if the entry takes arbitrary keyword arguments."""
    attributes: Mapping[str, Any]
    """Class attributes that hold None, a bool, a number, a string, or a tuple of these."""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    def required(self) -> list[str]:
        """Return the names of the parameters without a default."""
        return [name for name, item in self.parameters.items() if item.default is item.empty]


def is_literal(value: Any) -> bool:
    """Return True for None, a bool, a number, a string, and a tuple of these."""
    return all(map(is_literal, value)) if isinstance(value, tuple) else isinstance(value, LITERALS)


def signature_of(entry: Any) -> Signature:
    """Return the signature of an imported class or function.

    A constructor with `**kwargs` also accepts the parameters of the constructors of its base classes.
    """
    parameters: dict[str, inspect.Parameter] = {}
    accepts_any = False
    for function, signature in _signatures(entry):
        for name, item in signature.parameters.items():
            if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL) and name not in parameters:
                parameters[name] = item.replace(annotation=_resolved(item.annotation, function))
        accepts_any = any(item.kind is item.VAR_KEYWORD for item in signature.parameters.values())
        if not accepts_any:
            break
    return Signature(inspect.getdoc(entry) or "", parameters, accepts_any, _attributes(entry))


def _signatures(entry: Any) -> list[tuple[Callable[..., Any], inspect.Signature]]:
    """Return the constructor of a class and those of its base classes, or the function itself, with signatures."""
    if not inspect.isclass(entry):
        return [(entry, inspect.signature(entry))]
    classes = [base for base in inspect.getmro(entry) if "__init__" in vars(base) and base is not object]
    return [(vars(base)["__init__"], inspect.signature(base)) for base in classes]


def _resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    """Return the type that an annotation names, or `Any` if its module does not import the name."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(inspect.unwrap(function).__globals__))
    except (NameError, TypeError):
        return Any


def _attributes(entry: Any) -> dict[str, Any]:
    """Return the literal attributes of a class and its base classes."""
    if not inspect.isclass(entry):
        return {}
    found: dict[str, Any] = {}
    for base in reversed(inspect.getmro(entry)):
        found |= {name: value for name, value in vars(base).items() if not name.startswith("_") and is_literal(value)}
    return found
