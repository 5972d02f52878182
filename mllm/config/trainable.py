"""Key `trainable` of `model_args`: the parts of a model that train, and how much of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm.config.defaults import with_defaults
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError, hint
from mllm.family import FAMILIES

LORA, FULL, LAST_LAYERS = "lora", "full", "last_layers"
LORA_TOWERS = ("language", "vision")
TOWERS = (*LORA_TOWERS, "projector")
"""Parts that a dict may name. 'language' includes the encoder of an encoder-decoder."""
EXAMPLE = "{'language': 'lora', 'vision': 'full', 'projector': 'full'}, or {'language': {'last_layers': 4}}"


@dataclass(frozen=True)
class Parts:
    """Parts of a model that train."""

    lora_target: str | None
    """Layers with a LoRA, as in `model_args.lora_target`; None: no LoRA trains."""
    full: Mapping[str, int | None]
    """Tower that trains in full -> number of its last layers; None: the whole tower."""
    named: bool = True
    """False: `full` names all towers that a model can have, of which some may be absent."""

    @property
    def has_lora(self) -> bool:
        """True if a LoRA trains."""
        return self.lora_target is not None

    @property
    def whole_language(self) -> bool:
        """True if the whole language model trains in full."""
        return "language" in self.full and self.full["language"] is None


def check_trainable(value: Any) -> None:
    """Raise `ConfigError` unless `value` is 'lora', 'full', or a dict of towers; see `ModelArgs.trainable`."""
    if isinstance(value, str):
        if value not in (LORA, FULL):
            raise ConfigError(f"model_args.trainable does not know '{value}'{hint(value, (LORA, FULL))}")
        return
    if not value:
        raise ConfigError(f"model_args.trainable names no part of the model: set it to {EXAMPLE}")
    for tower, how in value.items():
        if tower not in TOWERS:
            raise ConfigError(f"model_args.trainable does not know the part '{tower}'{hint(str(tower), TOWERS)}")
        if tower not in LORA_TOWERS and how != FULL:
            raise ConfigError(f"model_args.trainable['{tower}'] must be 'full', not {how!r}: a {tower} has no layers")
        if how not in (LORA, FULL) and not _is_number_of_layers(how):
            raise ConfigError(
                f"model_args.trainable['{tower}'] must be 'lora', 'full' or {{'last_layers': N}} with N of at least 1, "
                f"not {how!r}"
            )


def _is_number_of_layers(how: Any) -> bool:
    """Return True for `{'last_layers': N}` with a whole number N of at least 1."""
    if not isinstance(how, Mapping) or set(how) != {LAST_LAYERS}:
        return False
    count = how[LAST_LAYERS]
    return isinstance(count, int) and not isinstance(count, bool) and count >= 1


def trained_parts(args: ModelArgs) -> Parts:
    """Return the parts that `args` train. Keys of a family that freeze or train its parts count with 'lora' only."""
    args = with_defaults(args)
    family = FAMILIES.find(args.type, args.part)
    if args.trainable == LORA:
        full = {"projector": None} if family.trains_projector(args) else {}
        full |= {"vision": None} if args.train_vision else {}
        return Parts(args.lora_target if family.trains_lora(args) else None, full)
    if args.trainable == FULL:
        return Parts(None, dict.fromkeys(TOWERS), named=False)
    assert isinstance(args.trainable, Mapping)
    adapted = [tower for tower in LORA_TOWERS if args.trainable.get(tower) == LORA]
    named = {tower: how for tower, how in args.trainable.items() if how != LORA}
    layers = {tower: None if how == FULL else int(how[LAST_LAYERS]) for tower, how in named.items()}
    return Parts(_target(args.lora_target, adapted), layers)


def target_of(towers: list[str]) -> str:
    """Return the name in `lora_target` of one or both towers."""
    return "all" if len(towers) == len(LORA_TOWERS) else towers[0]


def _target(lora_target: str, adapted: list[str]) -> str | None:
    """Return the layers with a LoRA in the towers `adapted`: all of them, or those that an expression matches."""
    if not adapted:
        return None
    return target_of(adapted) if lora_target in (*LORA_TOWERS, "all") else lora_target
