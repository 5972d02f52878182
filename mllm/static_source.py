"""Registry entries of this package, read from their source files without importing them."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.signatures import Signature, combine, is_literal

PACKAGE = Path(__file__).resolve().parent


class UnresolvedError(Exception):
    """A value or a class that cannot be determined without importing a module."""


class _Module:
    """A module of this package that an expression names: `templates.CAPTION`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return _resolve(self._name, attribute)


@dataclass(frozen=True)
class Location:
    """A class or a function of this package, as `module:attribute`."""

    module: str
    attribute: str

    def load(self) -> Any:
        """Import the module and return the class or function."""
        return vars(importlib.import_module(self.module))[self.attribute]

    def owns(self, entry: Any) -> bool:
        """Return True if `entry` is the class or function of this location."""
        return bool(entry.__module__ == self.module and entry.__qualname__ == self.attribute)


def find_entries(sources: Sequence[str], variable: str) -> dict[str, Location]:
    """Find classes and functions with the decorator `@VARIABLE.register_module`.

    Args:
        sources: Modules or packages of `mllm`, as dotted names; packages include their subpackages.
        variable: Name of the registry's variable, such as `HEADS`.

    Returns:
        Registered name -> location.
    """
    locations: dict[str, Location] = {}
    for source in sources:
        for module, path in _modules(source):
            if f"{variable}.register_module" not in path.read_text(encoding="utf-8"):
                continue
            for node in _parse(module).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    decorators = node.decorator_list
                    names = [name for decorator in decorators for name in _names(decorator, variable, node, module)]
                    locations |= dict.fromkeys(names, Location(module, node.name))
    return locations


def read_signature(location: Location) -> Signature:
    """Read the signature of a class or function from its source.

    Raises:
        UnresolvedError: The signature depends on a module that would have to be imported.
    """
    node = _definition(location.module, location.attribute)
    if isinstance(node, ast.FunctionDef):
        parameters, accepts_any = _parameters(node, location.module, skip=0)
        return Signature(_doc(node), parameters, accepts_any, {})
    attributes: dict[str, Any] = {}
    constructors = []
    for module, base in _ancestry(location.module, node):
        if any(isinstance(child, ast.FunctionDef) and child.name == "__init_subclass__" for child in base.body):
            raise UnresolvedError(f"{base.name} may change its subclasses")
        attributes = _attributes(base, module) | attributes
        constructor = _constructor(base, module)
        if constructor is not None:
            constructors.append(constructor)
    literals = {name: value for name, value in attributes.items() if is_literal(value)}
    return combine(_doc(node), constructors, literals)


def _modules(source: str) -> Iterator[tuple[str, Path]]:
    """Yield the modules of a source with their files, sorted by name."""
    path = _file(source)
    if path.name != "__init__.py":
        yield source, path
        return
    for file in sorted(path.parent.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join([PACKAGE.name, *(parts[:-1] if parts[-1] == "__init__" else parts)]), file


def _file(module: str) -> Path:
    """Return the source file of a module of this package."""
    folder = PACKAGE.joinpath(*module.split(".")[1:])
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


@functools.cache
def _parse(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


@functools.cache
def _top_level(module: str) -> dict[str, ast.stmt]:
    """Return the statements that define the names of a module."""
    if not _file(module).is_file():
        raise UnresolvedError(module)
    statements: dict[str, ast.stmt] = {}
    for node in _parse(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            statements[node.name] = node
        elif isinstance(node, ast.Assign):
            statements |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            statements[node.target.id] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            statements |= {alias.asname or alias.name: node for alias in node.names}
    return statements


def _names(decorator: ast.expr, variable: str, node: ast.ClassDef | ast.FunctionDef, module: str) -> list[str]:
    """Return the names under which a decorator registers a definition; none for other decorators."""
    if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func) != f"{variable}.register_module":
        return []
    values = [keyword.value for keyword in decorator.keywords if keyword.arg == "name"] + decorator.args
    names = _evaluate(values[0], module) if values else node.name
    return [names] if isinstance(names, str) else list(names)


def _evaluate(node: ast.expr, module: str) -> Any:
    """Evaluate an expression of a module from builtins, the standard library and constants of this package."""
    names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    values = {name: vars(builtins)[name] if name in vars(builtins) else _resolve(module, name) for name in names}
    try:
        return eval(compile(ast.Expression(node), module, "eval"), {"__builtins__": {}}, values)
    except (NameError, TypeError, AttributeError) as error:
        raise UnresolvedError(f"{ast.unparse(node)} in {module}") from error


def _resolve(module: str, name: str) -> Any:
    """Return the value of a name of a module."""
    node = _top_level(module).get(name)
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        return _evaluate(node.value, module)
    if isinstance(node, ast.ImportFrom) and node.module:
        original = _imported_name(node, name)
        if node.module.split(".")[0] == PACKAGE.name:
            submodule = f"{node.module}.{original}"
            return _Module(submodule) if _file(submodule).is_file() else _resolve(node.module, original)
        if node.module.split(".")[0] in sys.stdlib_module_names:
            return vars(importlib.import_module(node.module))[original]
    raise UnresolvedError(f"{name} in {module}")


def _imported_name(node: ast.ImportFrom, name: str) -> str:
    """Return the original name of a name that an import statement binds."""
    return next(alias.name for alias in node.names if (alias.asname or alias.name) == name)


def _definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    """Return the class or function with a name, following imports inside this package."""
    node = _top_level(module).get(name)
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node
    raise UnresolvedError(f"{name} in {module}")


def _ancestry(module: str, node: ast.ClassDef | ast.FunctionDef) -> list[tuple[str, ast.ClassDef]]:
    """Return a class and its base classes in this package, nearest first; other base classes are omitted."""
    assert isinstance(node, ast.ClassDef)
    ancestry = [(module, node)]
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        if not isinstance(name, ast.Name):
            continue
        origin, original, target = module, name.id, _top_level(module).get(name.id)
        if isinstance(target, ast.ImportFrom) and (target.module or "").split(".")[0] == PACKAGE.name:
            origin = str(target.module)
            original = _imported_name(target, name.id)
            target = _top_level(origin).get(original)
        if isinstance(target, ast.ClassDef):
            ancestry += _ancestry(origin, target)
    return ancestry


def _constructor(node: ast.ClassDef, module: str) -> tuple[dict[str, inspect.Parameter], bool] | None:
    """Return the parameters of a class's own constructor; None if the class defines none."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return _parameters(child, module, skip=1)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return _fields(node, module), False
    return None


def _fields(node: ast.ClassDef, module: str) -> dict[str, inspect.Parameter]:
    """Return the fields of a dataclass as parameters."""
    fields = [child for child in node.body if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name)]
    return {
        child.target.id: _parameter(
            child.target.id, inspect.Parameter.POSITIONAL_OR_KEYWORD, child.annotation, child.value, module
        )
        for child in fields
        if isinstance(child.target, ast.Name)
    }


def _parameters(node: ast.FunctionDef, module: str, skip: int) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the named parameters of a function after the first `skip`, and True if it has `**kwargs`."""
    kinds = inspect.Parameter
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults
    listed: list[tuple[ast.arg, ast.expr | None, Any]] = [
        (item, default, kinds.POSITIONAL_ONLY if item in node.args.posonlyargs else kinds.POSITIONAL_OR_KEYWORD)
        for item, default in zip(positional, defaults, strict=True)
    ]
    listed += [
        (item, default, kinds.KEYWORD_ONLY)
        for item, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    ]
    parameters = {
        item.arg: _parameter(item.arg, kind, item.annotation, default, module) for item, default, kind in listed[skip:]
    }
    return parameters, node.args.kwarg is not None


def _parameter(
    name: str, kind: Any, annotation: ast.expr | None, default: ast.expr | None, module: str
) -> inspect.Parameter:
    resolved = Any if annotation is None else _evaluate(_known_types(annotation, module), module)
    value = inspect.Parameter.empty if default is None else _evaluate(default, module)
    return inspect.Parameter(name, kind, default=value, annotation=resolved)


def _known_types(annotation: ast.expr, module: str) -> ast.expr:
    """Replace the types of other packages in an annotation by `object`, which is not checked."""

    class Replace(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802  (called by ast)
            return self._replace(node)

        def visit_Attribute(self, node: ast.Attribute) -> ast.expr:  # noqa: N802
            return self._replace(node)

        def _replace(self, node: ast.expr) -> ast.expr:
            try:
                _evaluate(node, module)
            except UnresolvedError:
                return ast.copy_location(ast.Name("object", ast.Load()), node)
            return node

    replaced: ast.expr = Replace().visit(ast.parse(ast.unparse(annotation), mode="eval").body)
    return replaced


def _attributes(node: ast.ClassDef, module: str) -> dict[str, Any]:
    """Return the attributes in the body of a class; `UnresolvedError` stands for a value that needs an import."""
    attributes: dict[str, Any] = {}
    for target, value in assignments(node.body):
        if isinstance(target, ast.Name) and not target.id.startswith("_"):
            try:
                attributes[target.id] = _evaluate(value, module)
            except UnresolvedError:
                attributes[target.id] = UnresolvedError
    return attributes


def assignments(body: Sequence[ast.stmt]) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield the target and the value of each assignment among statements, with or without an annotation."""
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield target, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield node.target, node.value


def _doc(node: ast.ClassDef | ast.FunctionDef) -> str:
    return ast.get_docstring(node) or ""
