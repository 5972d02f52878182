"""Reading, checking and adaptation of the config that a command names."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mllm.config.hardware import CHECKOUT, Hardware, check_packages, check_versions, detect
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.config.schema import DataArgs, GenerationArgs, RunConfig
from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.run_files import MINIATURE, runs_of

CHECKPOINTS = Path("ckpt")
SHIPPED_BASES = CHECKOUT / "config" / "_base_"
TINY_RANK = 4
"""Rank of the tiny adapter that replaces `adapter_path`."""
TINY_TOKENS = 8
"""Maximum number of tokens of an answer with `--tiny`: those of a random model mean nothing."""

logger = logging.getLogger(__name__)


def prepare_args(
    path: str, overrides: Sequence[str] = (), *, tiny: bool = False, loads_model: bool = False
) -> tuple[RunConfig, Hardware]:
    """Return the config at `path` with overrides, checked against the rules and adapted to the hardware.

    With `tiny`, checkpoints are replaced by tiny ones in `ckpt/`, absent data of the shipped bases by generated
    miniatures, and answers are short. With `loads_model`, the compiled packages are checked as well, which imports
    PyTorch.
    """
    check_versions()
    config = read_config(path, overrides)  # before any slow import, so that a mistake is reported at once
    if loads_model:
        check_packages()
    if tiny:
        config = with_tiny_parts(config)
    else:
        write_named_tiny(config)
    return apply_rules(config, detect())


def prepare_data_args(path: str, overrides: Sequence[str] = (), *, tiny: bool = False) -> RunConfig:
    """Return the config at `path` for work that loads no model here: without the rules for training and hardware."""
    check_versions()
    config = read_config(path, overrides)
    return with_tiny_parts(config) if tiny else config


def write_named_tiny(config: RunConfig) -> None:
    """Write the tiny checkpoint of a config that names one as its base, such as `ckpt/tiny-medgemma`."""
    name = FAMILIES.find(config.model_args.type).tiny_name()
    if Path(config.model_args.model_name_or_path) == CHECKPOINTS / f"tiny-{name}":
        from mllm.tiny.checkpoints import ensure_tiny

        ensure_tiny(name, CHECKPOINTS)


def with_tiny_parts(config: RunConfig) -> RunConfig:
    """Return the config with tiny checkpoints, miniatures for absent data of shipped bases, and short answers."""
    from mllm.dataset.builder import use_miniatures
    from mllm.tiny.checkpoints import ensure_tiny

    model = config.model_args
    family = FAMILIES.find(model.type)
    base = ensure_tiny(family.tiny_name(model.model_name_or_path), CHECKPOINTS)
    if str(base) != model.model_name_or_path:
        logger.info("--tiny: %s replaces %s", base, model.model_name_or_path)
    changes: dict[str, object] = {"tiny": True, "model_args.model_name_or_path": str(base)}
    if model.template_args and model.chat_template is None:
        logger.info("--tiny: template_args are left out, because the chat template of %s has no such variables", base)
        changes["model_args.template_args"] = {}
    changes |= {f"model_args.{key}": value for key, value in family.complete.items()}
    if config.distill_args is not None:
        teacher = ensure_tiny(FAMILIES.find(config.distill_args.teacher.type).tiny_name(), CHECKPOINTS)
        logger.info("--tiny: %s replaces %s", teacher, config.distill_args.teacher.model_name_or_path)
        changes["distill_args.teacher.model_name_or_path"] = str(teacher)
    if model.adapter_path is not None:
        from mllm.tiny.adapter import ensure_tiny_adapter

        _refuse_absent_adapter(config, model.adapter_path)
        adapter = ensure_tiny_adapter(base, TINY_RANK)
        logger.info("--tiny: %s replaces the adapter %s", adapter, model.adapter_path)
        changes["model_args.adapter_path"] = str(adapter)
    changes["data_args"] = use_miniatures(
        _with_short_answers(config), runs_of(config.name) / MINIATURE, lambda key: _is_shipped(config, key)
    )
    return config.replaced(**changes)


def _with_short_answers(config: RunConfig) -> DataArgs:
    """Return `data_args` with answers of at most `TINY_TOKENS`, unless the command line sets their length."""
    data, key = config.data_args, ("data_args", "gen_kwargs", "max_new_tokens")
    tokens = data.gen_kwargs.get(key[-1], GenerationArgs.max_new_tokens)
    is_overridden = key[-1] in data.gen_kwargs and config.origin(*key).startswith("--cfg-options")
    if data.test is None or config.model_args.part == "vision" or tokens <= TINY_TOKENS or is_overridden:
        return data
    logger.info(
        "--tiny: answers of at most %d tokens instead of %d; set another number with --cfg-options %s=N",
        TINY_TOKENS,
        tokens,
        ".".join(key),
    )
    return replace(data, gen_kwargs={**data.gen_kwargs, key[-1]: TINY_TOKENS})


def _refuse_absent_adapter(config: RunConfig, path: str) -> None:
    """Raise `ConfigError` for a missing adapter of the user's config; a name of the Hub (`owner/name`) is accepted."""
    key = ("model_args", "adapter_path")
    is_hub_name = re.fullmatch(r"[\w-]+/[\w.-]+", path) is not None and not Path(path).parent.exists()
    if not (_is_shipped(config, key) or is_hub_name or Path(path).expanduser().exists()):
        raise ConfigError(
            f"{config.origin(*key)}: adapter_path '{path}' does not exist: correct it, or try the config without it by "
            "--cfg-options model_args.adapter_path=None"
        )


def _is_shipped(config: RunConfig, key: Sequence[str]) -> bool:
    """Return True if a base of this repository wrote the key.

    A path in the user's config or on the command line must exist: a mistyped one would train on a miniature.
    """
    origin = config.origins.find(key)
    return origin is not None and origin.file is not None and SHIPPED_BASES in origin.file.resolve().parents
