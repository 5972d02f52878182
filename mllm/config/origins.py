"""Files and lines of the keys of a config, found in its syntax tree."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mllm.errors import ConfigError
from mllm.static_source import assignments

Key = tuple[str, ...]
OPTIONS = "--cfg-options"
"""Name of the origin of keys that the command line wrote."""


@dataclass(frozen=True)
class Origin:
    """Origin of a key."""

    file: Path | None
    """None: the command line."""
    line: int
    rank: int
    """Position in the order of merging: a base has a lower rank than the file that names it."""
    constant: str | None = None
    """Source of the value if it is a number, a string, True, False or None."""

    def __str__(self) -> str:
        return OPTIONS if self.file is None else f"{display_path(self.file)}:{self.line}"


@dataclass
class Origins:
    """Origins of all keys of a config."""

    written: dict[Key, Origin] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    """Files in the order of merging; the config itself is last."""

    def find(self, key: Sequence[str]) -> Origin | None:
        """Return the origin of `key`, or of the nearest enclosing dict if the key itself was not written."""
        for length in range(len(key), 0, -1):
            if tuple(key[:length]) in self.written:
                return self.written[tuple(key[:length])]
        return None

    def of(self, *key: str) -> str:
        """Return the `FILE:LINE` of a key; only the file if its line is unknown."""
        origin = self.find(key)
        if origin is not None:
            return str(origin)
        return display_path(self.files[-1]) if self.files else "config"

    def write(self, key: Key, origin: Origin, keeps_children: bool = False) -> None:
        """Record the origin of a key; without `keeps_children`, remove the origins of the keys inside it."""
        if not keeps_children:
            for other in [other for other in self.written if other[: len(key)] == key]:
                del self.written[other]
        self.written[key] = origin


def display_path(path: Path) -> str:
    """Return a path for messages: relative to the current directory if it is inside it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read_origins(path: Path) -> Origins:
    """Return the origins of all keys of a config and its bases.

    Raises:
        ConfigError: A file cannot be read, a base does not exist, or two bases write the same key.
    """
    origins = Origins()
    _read_file(path, origins, chain=())
    return origins


def _read_file(path: Path, origins: Origins, chain: tuple[Path, ...]) -> dict[str, Origin]:
    """Record the keys of a file and its bases; return the first origin of each top-level key."""
    if path in chain:
        raise ConfigError(f"{display_path(path)}: the file is its own base, by way of {display_path(chain[-1])}")
    tree = _parse(path)
    top: dict[str, Origin] = {}
    for base, line in _bases(tree, path):
        if not base.is_file():
            raise ConfigError(f"{display_path(path)}:{line}: the base '{base}' does not exist")
        for key, origin in _read_file(base, origins, (*chain, path)).items():
            if key in top:
                raise ConfigError(
                    f"{display_path(path)}:{line}: two bases write '{key}': {top[key]} and {origin}; bases must not "
                    f"share a top-level key, so derive from one of them and write the difference"
                )
            top[key] = origin
    rank = len(origins.files)
    origins.files.append(path)
    names: dict[str, ast.expr] = {}
    for target, value, line in _assignments(tree):
        if len(target) == 1:
            names[target[0]] = value
            top.setdefault(target[0], Origin(path, line, rank))
        _record(target, value, line, Recorder(origins, path, rank, names))
    for target, value, line in _updates(tree):
        _record(target, value, line, Recorder(origins, path, rank, names))
    return top


@dataclass(frozen=True)
class Recorder:
    """File whose keys are recorded."""

    origins: Origins
    path: Path
    rank: int
    names: dict[str, ast.expr]
    """Values of the top-level names of the file, which its dicts may use."""


def _record(key: Key, value: ast.expr, line: int, to: Recorder) -> None:
    """Record the origin of `key` and of all keys in its value."""
    if isinstance(value, ast.Name) and value.id in to.names and value.id != key[0]:
        value = to.names[value.id]
    children = list(_children(value))
    is_dict = _is_dict(value)
    deletes = any(name == "_delete_" for name, _, _ in children)
    origin = Origin(to.path, line, to.rank, ast.unparse(value) if isinstance(value, ast.Constant) else None)
    before = to.origins.written.get(key)
    if is_dict and not deletes and before is not None and before.constant is not None and before.rank < to.rank:
        raise ConfigError(
            f"{origin}: {'.'.join(key)} is a dict here and {before.constant} in its base ({before}): "
            f"add _delete_=True to the dict"
        )
    to.origins.write(key, origin, keeps_children=is_dict and not deletes)
    for name, child, child_line in children:
        if name != "_delete_":
            _record((*key, name), child, child_line, to)


def _is_dict(value: ast.expr) -> bool:
    return isinstance(value, ast.Dict) or (
        isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "dict"
    )


def _children(value: ast.expr) -> Iterator[tuple[str, ast.expr, int]]:
    """Yield the keys of a `dict(...)`, `{...}`, list or tuple with their values and lines."""
    if isinstance(value, ast.Call) and _is_dict(value):
        for keyword in value.keywords:
            if keyword.arg is not None:
                yield keyword.arg, keyword.value, keyword.lineno
    elif isinstance(value, ast.Dict):
        for key, child in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                yield str(key.value), child, key.lineno
    elif isinstance(value, (ast.List, ast.Tuple)):
        for index, child in enumerate(value.elts):
            yield str(index), child, child.lineno


def _assignments(tree: ast.Module) -> Iterator[tuple[Key, ast.expr, int]]:
    """Yield the top-level assignments `name = ...` and `name['key'] = ...` of a file, without `_base_`."""
    for target, value in assignments(tree.body):
        key = _target_key(target)
        if key and key != ("_base_",):
            yield key, value, target.lineno


def _updates(tree: ast.Module) -> Iterator[tuple[Key, ast.expr, int]]:
    """Yield the top-level calls `name.update(key=...)` of a file as assignments of dicts."""
    for node in tree.body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "update":
            key = _target_key(call.func.value)
            if key:
                yield key, ast.Call(ast.Name("dict", ast.Load()), [], call.keywords), node.lineno


def _target_key(target: ast.expr) -> Key:
    """Return ('model_args', 'lora_r') for `model_args['lora_r']`, and () for targets that depend on values."""
    if isinstance(target, ast.Name):
        return (target.id,)
    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        parent = _target_key(target.value)
        return (*parent, str(target.slice.value)) if parent else ()
    return ()


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise ConfigError(f"{display_path(path)}:{error.lineno}: SyntaxError: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{display_path(path)}: cannot be read as a Python file: {error}") from error


def _bases(tree: ast.Module, path: Path) -> Iterator[tuple[Path, int]]:
    """Yield the base files of a config with the lines that name them."""
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and _target_key(node.targets[0]) == ("_base_",)):
            continue
        elements = node.value.elts if isinstance(node.value, (ast.List, ast.Tuple)) else [node.value]
        for element in elements:
            if not (isinstance(element, ast.Constant) and isinstance(element.value, str)):
                raise ConfigError(
                    f"{display_path(path)}:{node.lineno}: _base_ must be a path, or a list of paths, as plain text"
                )
            # mmengine replaces this placeholder before it evaluates the file.
            name = re.sub(r"\{\{\s*fileDirname\s*\}\}", lambda _: str(path.parent), element.value)
            yield Path(os.path.abspath(path.parent / os.path.expanduser(name))), element.lineno
