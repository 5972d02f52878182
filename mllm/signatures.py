"""Signatures of registry entries: docstring, parameters and literal class attributes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LITERALS = (bool, int, float, str, type(None))
ASSIGNABLE = "assignable"
"""Class attribute with the names of options that are assigned to attributes if the constructor does not take them."""
COLUMNS = "columns"
"""Option of datasets: names of columns by the field that they stand for."""
FIELDS = "fields"
"""Class attribute with the fields that the option `columns` may have."""


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
    assigned: frozenset[str] = frozenset()
    """Parameters that the constructor does not take: their values are assigned to attributes after construction."""

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

    A constructor with `**kwargs` also accepts the parameters of the constructors of its base classes. The parameters of
    base classes in `assignable` are accepted by every class.
    """
    constructors = []
    for function, signature in _signatures(entry):
        items = signature.parameters.values()
        named = {
            item.name: item.replace(annotation=_resolved(item.annotation, function))
            for item in items
            if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
        }
        constructors.append((named, any(item.kind is item.VAR_KEYWORD for item in items)))
    return combine(inspect.getdoc(entry) or "", constructors, _attributes(entry))


def combine(
    doc: str, constructors: Iterable[tuple[Mapping[str, inspect.Parameter], bool]], attributes: Mapping[str, Any]
) -> Signature:
    """Return the signature of a class from its constructors.

    Args:
        doc: Docstring.
        constructors: Parameters of the constructors of the class and its base classes, nearest first, and True for
            those with `**kwargs`.
        attributes: Literal class attributes.
    """
    parameters: dict[str, inspect.Parameter] = {}
    assigned: dict[str, inspect.Parameter] = {}
    accepts_any, is_closed = False, False
    for named, has_kwargs in constructors:
        if not is_closed:
            parameters |= {name: item for name, item in named.items() if name not in parameters}
            accepts_any, is_closed = has_kwargs, not has_kwargs
        for name in attributes.get(ASSIGNABLE, ()):
            if name in named and name not in parameters:
                assigned.setdefault(name, named[name])
    return Signature(doc, {**parameters, **assigned}, accepts_any, attributes, frozenset(assigned))


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
    attributes: dict[str, Any] = {}
    for base in reversed(inspect.getmro(entry)):
        attributes |= {
            name: value for name, value in vars(base).items() if not name.startswith("_") and is_literal(value)
        }
    return attributes
