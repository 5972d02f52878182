"""Check of a merged config against the schema: unknown keys and invalid values are refused with their file and line."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from mllm.config.defaults import absence, absent_keys, without_foreign_keys
from mllm.config.origins import Key, Origins
from mllm.config.registry_entries import check_entry, describe_entry
from mllm.config.renamed import DATA, MODEL, TRAINING
from mllm.config.schema import (
    SPLITS,
    DataArgs,
    DistillArgs,
    ExportArgs,
    GenerationArgs,
    ModelArgs,
    PrivacyArgs,
    StoppingArgs,
)
from mllm.config.source import has_source
from mllm.config.trainable import LORA, check_trainable
from mllm.config.training_args import fill_defaults, training_fields
from mllm.config.training_support import REFUSED_VALUES, refusal
from mllm.errors import ConfigError, hint, nearest_names
from mllm.family import FAMILIES, Family
from mllm.options import broken_bound, fits, invalid_value
from mllm.registry import BOX_FORMATS, DATASETS, HEADS, METRICS, OBJECTIVES

TOP_LEVEL = (
    *("model_args", "data_args", "training_args", "objectives", "export_args", "distill_args", "privacy_args"),
    *("hardware", "custom_imports", "name", "tiny"),
)
DEFAULT_OBJECTIVES = {"next_token": {"type": "NextToken"}}
HEAD_NAMES = ("box", "mask", "measures")
"""Names of heads; objectives read predictions under them."""
HEAD_PROVIDED = ("width", "vision", "mask_size")
"""Arguments of a head that the program computes from the model."""
INTERVALS = ("save_steps", "eval_steps", "logging_steps")
"""Keys with a number of updates, or a fraction of all updates."""
POSITIVE = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "ddp_timeout"),
    *("ddp_bucket_cap_mb", "dataloader_prefetch_factor"),
)
NOT_NEGATIVE = (
    *("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers", "seed", "data_seed"),
    "eval_delay",
)
"""Keys whose negative values transformers and PyTorch accept, or refuse only after the model is loaded."""

OF_SAMPLING = ("temperature", "top_p", "top_k", "seed")
"""Keys of `data_args.gen_kwargs` without an effect on the most probable tokens."""
LARGEST_SEED = 2**32 - 1
"""Largest seed of NumPy; a larger one ends the run after its folder was made."""
LOG_LEVELS = ("passive", "detail", "debug", "info", "warning", "error", "critical")
"""Values of `log_level` and `log_level_replica`; transformers ends with a KeyError for others."""


def check_top_level(merged: Mapping[str, Any], origins: Origins) -> None:
    """Check the top-level keys of a merged config, and that all values can be written into the saved config.

    Raises:
        ConfigError: A key is unknown, `name` or `tiny` has the wrong type, or a value is a class or a function.
    """
    check_names(merged, origins)
    for key, value in merged.items():
        _refuse_without_source(value, (key,), origins)
    for key, kind in (("name", str), ("tiny", bool)):
        if key in merged and not fits(merged[key], kind):
            raise ConfigError(f"{origins.of(key)}: {key} {invalid_value(merged[key], kind)}")


def check_names(names: Iterable[str], origins: Origins) -> None:
    """Raise `ConfigError` for an unknown top-level name that does not begin with '_'."""
    renamed = {"training_args": TRAINING, "model_args": MODEL, "data_args": DATA}
    for name in names:
        if re.fullmatch(r"_+bases?_*", name.lower()) and name != "_base_":
            raise ConfigError(f"{origins.of(name)}: unknown key '{name}' at the top level: did you mean '_base_'?")
        if name not in TOP_LEVEL and not name.startswith("_"):
            sections = [section for section, keys in _section_keys().items() if name in keys]
            old = [section for section, keys in renamed.items() if name in keys]
            if sections:
                tail = f": did you mean {' or '.join(f'{section}.{name}' for section in sections)}?"
            elif old:
                tail = f": it is a key of {old[0]}: {renamed[old[0]][name]}"
            else:
                tail = hint(name, TOP_LEVEL)
            raise ConfigError(
                f"{origins.of(name)}: unknown key '{name}' at the top level{tail} (helper variables begin with '_')"
            )


def _section_keys() -> dict[str, set[str]]:
    """Return the keys of each section of a config, with those of all model types."""
    schemas = {"data_args": DataArgs, "export_args": ExportArgs, "privacy_args": PrivacyArgs}
    sections = {name: {item.name for item in dataclasses.fields(schema)} for name, schema in schemas.items()}
    common_keys = {item.name for item in dataclasses.fields(ModelArgs)}
    model_keys = common_keys.union(*(family.own_keys for family in FAMILIES))
    return {"training_args": set(training_fields()), "model_args": model_keys, **sections}


def _refuse_without_source(value: Any, key: Key, origins: Origins) -> None:
    """Raise `ConfigError` for values that cannot be written as Python source, such as classes and functions."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            _refuse_without_source(child, (*key, str(name)), origins)
    elif not has_source(value):
        raise ConfigError(
            f"{origins.of(*key)}: {'.'.join(key)} is a {type(value).__name__}; a config holds only None, True, False, "
            f"numbers, text, lists, tuples and dicts"
        )


def check_sections(merged: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """Return the checked sections of a config with all defaults, by the names of their fields in `RunConfig`.

    Raises:
        ConfigError: A key or type is unknown, a required key is missing, or a value is invalid.
    """
    privacy = privacy_args(merged, origins)
    return {
        "model_args": model_args(section(merged, "model_args", origins), origins),
        "data_args": data_args(section(merged, "data_args", origins), origins),
        "training_args": training_args(
            section(merged, "training_args", origins), origins, is_private=privacy is not None
        ),
        "objectives": objectives(section(merged, "objectives", origins), origins),
        "export_args": export_args(section(merged, "export_args", origins), origins),
        "privacy_args": privacy,
        "hardware": hardware(section(merged, "hardware", origins), origins),
    }


def section(merged: Mapping[str, Any], name: str, origins: Origins) -> dict[str, Any]:
    """Return a section of the merged config; an empty dict if the config does not have it."""
    value = merged.get(name, {})
    if not isinstance(value, Mapping):
        raise ConfigError(f"{origins.of(name)}: {name} must be a dict, not {value!r}")
    return dict(value)


def model_args(values: dict[str, Any], origins: Origins) -> ModelArgs:
    """Return the checked `model_args` as the options of their type."""
    args = typed_args(values, "model_args", origins)
    try:
        check_trainable(args.trainable)
    except ConfigError as error:
        raise ConfigError(f"{origins.of('model_args', 'trainable')}: {error}") from None
    if args.chat_template is not None and not re.search(r"\{[{%]", args.chat_template):
        raise ConfigError(
            f"{origins.of('model_args', 'chat_template')}: model_args.chat_template must be the text of a Jinja "
            "template, with {{ or {%, and not the name of a file"
        )
    if args.lora_target not in ("language", "vision", "all"):
        try:
            re.compile(args.lora_target)
        except re.error as error:
            raise ConfigError(
                f"{origins.of('model_args', 'lora_target')}: model_args.lora_target must be 'language', 'vision', "
                f"'all' or a regular expression; {args.lora_target!r} is not a valid one: {error}"
            ) from error
    heads = {}
    for name, options in args.heads.items():
        if name not in HEAD_NAMES:
            raise ConfigError(
                f"{origins.of('model_args', 'heads', name)}: model_args.heads has no head named '{name}'"
                f"{hint(name, HEAD_NAMES)}"
            )
        heads[name] = check_entry(options, HEADS, ("model_args", "heads", name), origins, provided=HEAD_PROVIDED)
    if args.box_format is not None:
        check_entry(args.box_format, BOX_FORMATS, ("model_args", "box_format"), origins)
    return dataclasses.replace(args, heads=heads)


def typed_args(values: dict[str, Any], name: str, origins: Origins) -> ModelArgs:
    """Return the section `name` as the options of its `type`; raise `ConfigError` for keys that the type lacks."""
    key = name.split(".")
    if "type" not in values:
        build_section(ModelArgs, values, name, origins)
    family = known_family(values.get("type"), (*key, "type"), origins)
    for name_of_value in values:
        try:
            without_foreign_keys({name_of_value: values[name_of_value]}, family)
        except ConfigError as error:
            raise ConfigError(f"{origins.of(*key, name_of_value)}: {error}") from None
    args: ModelArgs = build_section(family.options, without_foreign_keys(values, family), name, origins)
    for unsupported in absent_keys(args):
        raise ConfigError(f"{origins.of(*key, unsupported)}: {absence(args.type, unsupported, args.part)}")
    return args


def data_args(values: dict[str, Any], origins: Origins) -> DataArgs:
    """Return the checked `data_args`, with datasets checked against the signatures of their classes."""
    args = build_section(DataArgs, values, "data_args", origins)
    build_section(GenerationArgs, dict(args.gen_kwargs), "data_args.gen_kwargs", origins)
    for key in OF_SAMPLING:
        if key in args.gen_kwargs and "do_sample" not in args.gen_kwargs:
            raise ConfigError(
                f"{origins.of('data_args', 'gen_kwargs', key)}: data_args.gen_kwargs.{key} has no effect without "
                "do_sample=True: set that too, or remove it"
            )
    for name in args.metrics:
        describe_entry(METRICS, name, ("data_args", "compute_metric"), origins)
    splits = {
        split: check_entry(values[split], DATASETS, ("data_args", split), origins)
        for split in SPLITS
        if values.get(split) is not None
    }
    return dataclasses.replace(args, **splits)


def export_args(values: dict[str, Any], origins: Origins) -> ExportArgs:
    """Return the checked `export_args`."""
    args: ExportArgs = build_section(ExportArgs, values, "export_args", origins)
    return args


def privacy_args(merged: Mapping[str, Any], origins: Origins) -> PrivacyArgs | None:
    """Return the checked `privacy_args`; None if the config has none, or sets those of its base to None."""
    if merged.get("privacy_args") is None:
        return None
    values = section(merged, "privacy_args", origins)
    args: PrivacyArgs = build_section(PrivacyArgs, values, "privacy_args", origins)
    return args


def distill_args(merged: Mapping[str, Any], origins: Origins) -> DistillArgs | None:
    """Return the checked `distill_args`; None if the config has none, or sets those of its base to None."""
    if merged.get("distill_args") is None:
        return None
    values = section(merged, "distill_args", origins)
    teacher = values.get("teacher")
    if not isinstance(teacher, dict):
        raise ConfigError(
            f"{origins.of('distill_args')}: distill_args needs teacher=dict(type=..., model_name_or_path=...)"
        )
    teacher_args = typed_args({"lora_r": None, **teacher}, "distill_args.teacher", origins)
    origin = origins.of("distill_args", "teacher", "type")
    trained = {
        "lora_r": teacher_args.lora_r is not None,
        "heads": bool(teacher_args.heads),
        "trainable": teacher_args.trainable != LORA,
    }
    for key, is_set in trained.items():
        if is_set:
            raise ConfigError(f"{origin}: a teacher does not train: remove distill_args.teacher.{key}")
    part = FAMILIES.find(teacher_args.type).defaults.get("part", teacher_args.part)
    teacher_args = dataclasses.replace(teacher_args, part=part)
    args: DistillArgs = build_section(DistillArgs, {**values, "teacher": teacher_args}, "distill_args", origins)
    return args


def objectives(values: dict[str, Any], origins: Origins) -> dict[str, dict[str, Any]]:
    """Return the objectives, checked against the signatures of their classes; without any, next-token prediction."""
    if not values:
        return {name: dict(options) for name, options in DEFAULT_OBJECTIVES.items()}
    checked = {}
    for name, options in values.items():
        if options is not None:  # None removes the objective of a base config.
            checked[name] = check_entry(options, OBJECTIVES, ("objectives", name), origins)
    return checked


def training_args(values: dict[str, Any], origins: Origins, is_private: bool) -> dict[str, Any]:
    """Return the checked `training_args` with all defaults of `transformers.TrainingArguments` and `StoppingArgs`."""
    stopping_keys = [item.name for item in dataclasses.fields(StoppingArgs)]
    build_section(StoppingArgs, {key: values[key] for key in stopping_keys if key in values}, "training_args", origins)
    known = training_fields()
    usable = [key for key in known if key in stopping_keys or refusal(key) is None]
    for key, value in values.items():
        origin = origins.of("training_args", key)
        if key not in known:
            if key in TRAINING:
                tail = f": {TRAINING[key]}"
            elif nearest_names(key, usable):
                tail = hint(key, usable)
            else:
                tail = "; known are the arguments of transformers.TrainingArguments"
            raise ConfigError(f"{origin}: unknown key '{key}' in training_args{tail}")
        if not fits(value, known[key].annotation):
            problem = invalid_value(value, known[key].annotation, REFUSED_VALUES.get(key, ()))
            raise ConfigError(f"{origin}: training_args.{key} {problem}")
        if key in POSITIVE and value is not None and value < 1:
            raise ConfigError(f"{origin}: training_args.{key} must be an integer of at least 1, not {value!r}")
        if key in INTERVALS and value is not None and not value > 0:
            raise ConfigError(f"{origin}: training_args.{key} must be greater than 0, not {value!r}")
        if key in NOT_NEGATIVE and value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"{origin}: training_args.{key} must be 0 or more and finite, not {value!r}")
        if key == "seed" and value > LARGEST_SEED:
            raise ConfigError(f"{origin}: training_args.seed must be at most {LARGEST_SEED}, not {value!r}")
        if key in ("log_level", "log_level_replica") and value not in LOG_LEVELS:
            raise ConfigError(f"{origin}: training_args.{key} does not know {value!r}{hint(str(value), LOG_LEVELS)}")
    return fill_defaults(values, is_private)


def hardware(values: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """Return the checked section `hardware`, whose keys are `bf16` and `fp16`."""
    for key, value in values.items():
        if key not in ("bf16", "fp16"):
            tail = hint(key, ["bf16", "fp16"])
            raise ConfigError(f"{origins.of('hardware', key)}: unknown key '{key}' in hardware{tail}")
        if not isinstance(value, bool):
            raise ConfigError(f"{origins.of('hardware', key)}: hardware.{key} must be True or False, not {value!r}")
    return values


def build_section(schema: type, values: dict[str, Any], name: str, origins: Origins) -> Any:
    """Return the dataclass `schema` with the checked values of a section, such as `distill_args.teacher`."""
    fields = {item.name: item for item in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        origin = origins.of(*name.split("."), key)
        if key not in fields:
            renamed = {"model_args": MODEL, "data_args": DATA, "distill_args.teacher": MODEL}.get(name, {})
            tail = f": {renamed[key]}" if key in renamed else hint(key, fields)
            raise ConfigError(f"{origin}: unknown key '{key}' in {name}{tail}")
        if not fits(value, hints[key]):
            raise ConfigError(f"{origin}: {name}.{key} {invalid_value(value, hints[key])}")
        bound = broken_bound(value, fields[key].metadata)
        if bound is not None:
            raise ConfigError(f"{origin}: {name}.{key} must be {bound}, not {value!r}")
    for key, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and key not in values:
            base = " (a base in _base_ usually has it)" if (name, key) == ("model_args", "type") else ""
            raise ConfigError(f"{origins.of(*name.split('.'))}: {name} needs the key '{key}'{base}")
    return schema(**values)


def known_family(name: Any, key: Key, origins: Origins) -> Family:
    """Return the record of a type; raise `ConfigError` with the origin of `key` for an unknown one."""
    if not isinstance(name, str):
        raise ConfigError(f"{origins.of(*key)}: {'.'.join(key)} must be text, not {name!r}")
    try:
        return FAMILIES.find(name)
    except ConfigError as error:
        raise ConfigError(f"{origins.of(*key)}: {error} ({'.'.join(key[:-1])})") from None
