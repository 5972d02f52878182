"""Registries: tables from names in a config to classes and functions."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mmengine.registry import Registry as _Registry

from mllm.errors import ConfigError, hint
from mllm.options import fits, invalid_value
from mllm.signatures import COLUMNS, FIELDS, Signature, signature_of
from mllm.static_source import Location, UnresolvedError, find_entries, read_signature


class Registry(_Registry):
    """Table from names to classes or functions.

    Entries of this package are found in the source of `sources` by their decorator and imported when they are first
    used, so that a config can be checked without importing PyTorch. Other code registers entries as in mmengine, with
    `@REGISTRY.register_module()`.
    """

    def __init__(self, name: str, description: str, *sources: str) -> None:
        super().__init__(name, scope="mllm")
        self.description = description
        """Description for `mllm show registries`."""
        self.sources = sources
        """Modules and packages of `mllm` whose entries belong to this registry."""

    @functools.cached_property
    def locations(self) -> dict[str, Location]:
        """Name -> location of every entry of this package."""
        return find_entries(self.sources, self.name.upper().replace(" ", "_"))

    def names(self) -> list[str]:
        """Return the names of all entries, sorted."""
        return sorted({*self.module_dict, *self.locations})

    def find(self, name: str) -> Any:
        """Return an entry and import it if necessary.

        Raises:
            ConfigError: No entry has this name; the message names the nearest one.
        """
        if name not in self.module_dict:
            if name not in self.locations:
                raise ConfigError(f"unknown type '{name}' in registry {self.name}{hint(name, self.names())}")
            self.module_dict.setdefault(name, self.locations[name].load())
        return self.module_dict[name]

    def describe(self, name: str) -> Signature:
        """Return the signature of an entry, without importing it if its source suffices.

        Raises:
            ConfigError: No entry has this name.
        """
        if name not in self.module_dict and name in self.locations:
            try:
                return read_signature(self.locations[name])
            except UnresolvedError:
                pass  # a base class or a default of another package; the import below resolves it
        return signature_of(self.find(name))

    def _register_module(self, module: Any, module_name: Any = None, force: bool = False) -> None:
        names = [module_name] if isinstance(module_name, str) else (module_name or [module.__name__])
        for name in names:
            location = self.locations.get(name)
            is_own = location is not None and location.owns(module)
            if is_own and name in self.module_dict:
                continue  # replaced by other code with force=True before this module was imported
            if location is not None and not is_own and not force:
                raise KeyError(f"{name} is already registered in {self.name} at {location.module}")
            super()._register_module(module, name, force)


class OptionError(ConfigError):
    """Invalid option of a registry entry."""

    def __init__(self, message: str, key: tuple[str, ...]) -> None:
        super().__init__(message)
        self.key = key
        """Path of the option: `('data_args', 'train', 'size')`."""


class UnknownOptionError(OptionError):
    """Options that an entry does not have."""

    def __init__(
        self, names: Sequence[str], type_name: str, key: tuple[str, ...], known: Sequence[str], where: str
    ) -> None:
        self.names, self.type_name, self.parent = names, type_name, key
        self._known, self._where = known, where
        super().__init__(self.message(names[0]), (*key, names[0]))

    def message(self, name: str) -> str:
        """Return the message about one of the options."""
        return f"unknown key '{name}' in {self._where} ({self.type_name}){hint(name, self._known)}"


class UnknownFieldError(UnknownOptionError):
    """Keys of the option `columns` that are no fields of a row of the dataset."""

    def message(self, name: str) -> str:
        """Return the message about one of the keys, with the way to add it if the class is a user's."""
        if not self._known:
            return f"{self._where}: {self.type_name} reads official files, whose columns have fixed names: remove it"
        is_own = self.type_name in DATASETS.locations
        end = "" if is_own else f" (if {self.type_name} reads it, add it to `optional` of the class)"
        return f"unknown field '{name}' in {self._where} ({self.type_name}){hint(name, self._known)}{end}"


def check(
    registry: Registry, options: Any, key: tuple[str, ...] = (), provided: Collection[str] = ()
) -> dict[str, Any]:
    """Check `dict(type=..., **options)` against the signature of its entry, and the dicts with a `type` inside it.

    Args:
        registry: Registry of the type.
        options: The dict. `transforms` inside it are entries of TRANSFORMS, other dicts with a `type` of `registry`.
        key: Path of the dict in the config, for messages.
        provided: Parameters that the program supplies and a config cannot set.

    Returns:
        A copy of the options.

    Raises:
        OptionError: The type or an option is unknown, a required option is missing, or a value has the wrong type.
    """
    where = ".".join(key) or registry.name
    if not isinstance(options, Mapping) or "type" not in options:
        raise OptionError(f"{where} must be a dict with a 'type', not {options!r}", key)
    kind = options["type"]
    signature = describe(registry, kind, (*key, "type"))
    parameters = {name: item for name, item in signature.parameters.items() if name not in provided}
    check_names(registry, kind, [name for name in options if name != "type"], key, provided)
    for name in signature.required():
        if name in parameters and name not in options:
            raise OptionError(f"{where} ({kind}) needs the key '{name}'", key)
    checked = dict(options)
    for name, value in options.items():
        if name in parameters and not fits(value, parameters[name].annotation):
            problem = invalid_value(value, parameters[name].annotation)
            raise OptionError(f"{where}.{name} {problem}", (*key, name))
        if name == COLUMNS and FIELDS in signature.attributes:
            _check_fields(signature.attributes[FIELDS], value, kind, (*key, name))
        checked[name] = _check_nested(TRANSFORMS if name == "transforms" else registry, value, (*key, name))
    return checked


def check_names(
    registry: Registry, kind: str, names: Iterable[str], key: tuple[str, ...] = (), provided: Collection[str] = ()
) -> None:
    """Check the names of the options of an entry; see `check` for the arguments.

    Raises:
        UnknownOptionError: The entry does not have an option.
    """
    signature = describe(registry, kind, (*key, "type"))
    known = [name for name in signature.parameters if name not in provided]
    unknown = [name for name in names if name not in known]
    if unknown and not signature.accepts_any:
        raise UnknownOptionError(unknown, kind, key, known, ".".join(key) or registry.name)


def _check_fields(fields: Sequence[str], columns: Any, kind: str, key: tuple[str, ...]) -> None:
    """Raise `UnknownFieldError` if `columns` has a key that is not in `fields`, those that a dataset reads."""
    unknown = [name for name in columns or () if name not in fields]
    if unknown:
        raise UnknownFieldError(unknown, kind, key, fields, ".".join(key))


def _check_nested(registry: Registry, value: Any, key: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping) and "type" in value:
        return check(registry, value, key)
    if isinstance(value, (list, tuple)):
        return type(value)(_check_nested(registry, item, (*key, str(index))) for index, item in enumerate(value))
    return value


def describe(registry: Registry, name: Any, key: tuple[str, ...]) -> Signature:
    """Return the signature of an entry that a config names at `key`.

    Raises:
        OptionError: The name is not a string, or no entry has this name.
    """
    if not isinstance(name, str):
        raise OptionError(f"{'.'.join(key)} must be text, not {name!r}", key)
    try:
        return registry.describe(name)
    except ConfigError as error:
        context = ".".join(key[:-1])
        raise OptionError(f"{error} ({context})" if context else str(error), key) from None


def build(registry: Registry, options: Mapping[str, Any], where: str = "", /, **provided: Any) -> Any:
    """Build the object of `dict(type=..., **options)`.

    Options that only a base class takes and that are in its `assignable` are assigned to attributes of the object.

    Args:
        registry: Registry of the type.
        options: The dict.
        where: Dotted name of the dict in the config, for messages.
        provided: Arguments that the program supplies, such as the width of a model.

    Raises:
        ConfigError: An option is invalid; the message names the type and the option.
    """
    arguments = check(registry, options, tuple(where.split(".")) if where else (), provided)
    kind = arguments.pop("type")
    assigned = {name: arguments.pop(name) for name in registry.describe(kind).assigned if name in arguments}
    try:
        entry = registry.find(kind)(**provided, **arguments)
        for name, value in assigned.items():
            setattr(entry, name, value)
        return entry
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{where or registry.name} ({kind}): {error}") from error


MODELS = Registry("models", "type -> build(args, hardware) -> Bundle", "mllm.models.builder")
TRAINERS = Registry("trainers", "type -> build(learner, ...) -> Trainer", "mllm.engine.builder")
DATASETS = Registry("datasets", "type -> dataset(**data_args[split])", "mllm.dataset")
READERS = Registry("readers", "file suffix -> read(path, **options) -> list of PIL images", "mllm.dataset.readers")
TRANSFORMS = Registry("transforms", "type -> transform(image, marks, rng) -> (image, marks)", "mllm.dataset.augment")
BOX_FORMATS = Registry(
    "box formats",
    "name -> text format of boxes and points, with write(), read() and tokens",
    "mllm.models.encoding.box_formats",
)
HEADS = Registry(
    "heads", "type -> Head(width, **options), which predicts an object from a hidden state", "mllm.models.heads"
)
OBJECTIVES = Registry("objectives", "type -> Objective(weight, **options)", "mllm.objectives")
METRICS = Registry(
    "metrics", "name -> metric(predictions, references) -> dict of numbers; both are lists of Answer", "mllm.metrics"
)
EXPORTERS = Registry("exporters", "name -> write(bundle, folder, **options) -> Path", "mllm.export")

ALL = (MODELS, TRAINERS, DATASETS, READERS, TRANSFORMS, BOX_FORMATS, HEADS, OBJECTIVES, METRICS, EXPORTERS)
