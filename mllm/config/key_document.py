"""Document of all config keys, generated from the schema: `config/README.md`."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from mllm.config import schema
from mllm.config.dataset_document import task_document
from mllm.config.training_args import PRIVATE_DEFAULTS, RUN_DEFAULTS
from mllm.family import FAMILIES
from mllm.options import format_type

HEADER = """# Keys of a config

This file is generated: `python mllm/pipeline/show.py keys > config/README.md`.

A config is a Python file with dicts at the top level. `_base_` names one or several config files from which it derives;
a config writes only the differences. `_delete_=True` in a dict removes the keys of the base. Names that begin with `_`
are helper variables. Paths are relative to the current directory; paths of bases are relative to the file that names
them. `python mllm/pipeline/show.py config FILE` prints a config with all defaults, and
`python mllm/pipeline/show.py registries` lists all types of models, datasets, transforms, heads, box formats,
objectives and metrics.
"""
TRAINING = """## training_args

Arguments of [transformers.TrainingArguments](https://huggingface.co/docs/transformers/main_classes/trainer) with the
defaults of the installed version of transformers, except for these defaults:
"""
OBJECTIVES = """## objectives

Terms of the training loss: name -> `dict(type=..., weight=..., **options)`, where `type` is an entry of the registry
OBJECTIVES. The weight is a number, or `dict(start=a, end=b)` for a linear change over the training. None removes the
objective of a base. Default: `dict(next_token=dict(type='NextToken'))`.
"""
OTHER = """## Other keys

| key | type | default | description |
|---|---|---|---|
| `hardware` | a dict | `{}` | `bf16=True`, `fp16=True`: keep this precision on a CPU, where it is slow. |
| `custom_imports` | a dict | `{}` | `imports`: modules that register parts. `folders`: their folders. |
| `name` | text | file name | Name of the run; runs are written to `exp/<name>/`. |
| `tiny` | True or False | `False` | Replace checkpoints by tiny ones, as `--tiny` does. |
"""


def key_document() -> str:
    """Return the content of `config/README.md`."""
    parts = [
        HEADER,
        _section("model_args", schema.ModelArgs),
        *_family_tables(),
        _section("data_args", schema.DataArgs),
        "Keys of `data_args.gen_kwargs`:\n\n" + _table(schema.GenerationArgs),
        TRAINING + "\n" + _defaults(),
        "In addition:\n\n" + _table(schema.StoppingArgs),
        OBJECTIVES,
        _section("export_args", schema.ExportArgs),
        _section("distill_args", schema.DistillArgs),
        _section("privacy_args", schema.PrivacyArgs),
        OTHER,
        task_document(),
    ]
    return "\n".join(parts)


def _section(name: str, cls: Any) -> str:
    """Return a heading, the first line of the docstring of a dataclass, and the table of its keys."""
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    return f"## {name}\n\n{summary}\n\n{_table(cls)}"


def _family_tables() -> Iterator[str]:
    """Yield a table of the additional keys of each class of family options."""
    common = frozenset(item.name for item in dataclasses.fields(schema.ModelArgs))
    for options in dict.fromkeys(family.options for family in FAMILIES if family.own_keys):
        types = [f"`{family.type}`" for family in FAMILIES if family.options is options]
        yield f"Further keys of {' and '.join(types)}:\n\n{_table(options, common)}"


def _defaults() -> str:
    rows = [f"| `{key}` | `{value!r}` |" for key, value in RUN_DEFAULTS.items()]
    rows += [f"| `{key}` with `privacy_args` | `{value!r}` |" for key, value in PRIVATE_DEFAULTS.items()]
    return "\n".join(["| key | default |", "|---|---|", *rows]) + "\n"


def _table(cls: Any, omitted: frozenset[str] = frozenset()) -> str:
    """Return a table of the fields of a dataclass with their types, defaults and docstrings."""
    hints, sentences = typing.get_type_hints(cls), field_docs(cls)
    rows = ["| key | type | default | description |", "|---|---|---|---|"]
    for item in dataclasses.fields(cls):
        if item.name not in omitted:
            kind = "a dict" if dataclasses.is_dataclass(hints[item.name]) else format_type(hints[item.name])
            rows.append(f"| `{item.name}` | {kind} | {_default(item)} | {sentences[item.name]} |")
    return "\n".join(rows) + "\n"


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default_factory is not dataclasses.MISSING:
        return f"`{item.default_factory()!r}`"
    return "required" if item.default is dataclasses.MISSING else f"`{item.default!r}`"


@functools.cache
def field_docs(cls: Any) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass and its base classes, each on one line."""
    docs: dict[str, str] = {}
    for base in reversed(inspect.getmro(cls)):
        if dataclasses.is_dataclass(base):
            docs |= dict(_docs_of(base))
    return docs


def _docs_of(cls: Any) -> Iterator[tuple[str, str]]:
    node = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(node, ast.ClassDef)
    for statement, following in zip(node.body, node.body[1:], strict=False):
        is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if is_field and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            yield ast.unparse(statement.target), " ".join(str(following.value.value).split())  # type: ignore[attr-defined]
