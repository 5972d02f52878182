"""Search for the largest micro-batch that fits, and for the smallest change of a config that makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm.config.trainable import trained_parts
from mllm.engine.builder import CHECKPOINTING, logical_batch_size
from mllm.errors import UserError
from mllm.family import FAMILIES
from mllm.planning.plan import Plan
from mllm.planning.processes import peak_of

Planner = Callable[[Mapping[str, Any]], Plan]
"""Function of changes of a config by dotted key -> its plan."""
SMALLEST = {"image_size": 448, "image_token_len": 64, "max_length": 256, "lora_r": 4}
"""Smallest values that the search tries; a config may have smaller ones."""


@dataclass(frozen=True)
class Fit:
    """A plan that fits, with the changes that lead to it."""

    plan: Plan
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the config by dotted key; empty: it fits as it is."""


def largest_micro_batch(first: Plan, planner: Planner, limit: int, changes: Mapping[str, Any], gpus: int) -> Fit | None:
    """Return the plan with most samples in a micro-batch that fits `limit` bytes, or None if one sample does not.

    Memory grows almost linearly with the samples, so two plans give the number, and a third one checks it. An update
    has the same number of samples as before.

    Args:
        first: The plan of the config with `changes`.
        planner: Function that plans the config with other changes.
        limit: Bytes that tensors can occupy on a GPU.
        changes: Changes of the config that apply to all of these plans.
        gpus: Number of processes.
    """
    total = logical_batch_size(first.config.training_args)
    other_size = 1 if first.samples > 1 else next((size for size in range(2, total + 1) if total % size == 0), 1)
    if other_size == first.samples:
        return Fit(first, changes) if peak_of(first, gpus) <= limit else None
    sized = {**changes, **sizes(first, other_size)}
    other = planner(sized)
    low, high = sorted((first, other), key=lambda item: item.samples)
    step = (peak_of(high, gpus) - peak_of(low, gpus)) / (high.samples - low.samples)
    if peak_of(low, gpus) > limit:
        return None
    room = total if step <= 0 else low.samples + int((limit - peak_of(low, gpus)) / step)
    size = _divisor(total, min(total, room))
    while size > low.samples:
        for known, own in ((first, changes), (other, sized)):
            if known.samples == size and peak_of(known, gpus) <= limit:
                return Fit(known, own)
        tried = {**changes, **sizes(first, size)}
        candidate = planner(tried)
        if peak_of(candidate, gpus) <= limit:
            return Fit(candidate, tried)
        size = _divisor(total, size - 1)
    return Fit(low, changes if low is first else sized)


def sizes(plan: Plan, samples: int) -> dict[str, Any]:
    """Return the changes that give micro-batches of `samples` samples and leave the update as it is."""
    if isinstance(plan.config.data_args.tokens_per_micro_batch, int):
        return {"data_args.tokens_per_micro_batch": samples * max(1, plan.tokens // plan.samples)}
    if plan.config.privacy_args is not None:
        return {"privacy_args.physical_batch_size": samples}
    total = logical_batch_size(plan.config.training_args)
    return {
        "training_args.per_device_train_batch_size": samples,
        "training_args.gradient_accumulation_steps": total // samples,
    }


def _divisor(total: int, at_most: int) -> int:
    """Return the largest divisor of `total` that is at most `at_most`, so that the update keeps its samples."""
    return next(size for size in range(max(1, at_most), 0, -1) if total % size == 0)


def fitting(first: Plan, planner: Planner, limit: int, gpus: int) -> Fit | None:
    """Return the plan with the smallest change that fits `limit` bytes; None if no change does.

    Smaller micro-batches are tried first, then the changes of `steps`, each in addition to those before it. Of the
    changes together, those without which the config fits as well are left out again.
    """
    best = largest_micro_batch(first, planner, limit, {}, gpus)
    if best is not None:
        return best
    smaller = sizes(first, 1) if first.samples > 1 else {}
    chosen = [smaller] if smaller else []
    for change in steps(first):
        plan = _planned(planner, [*chosen, change])
        if plan is None:
            continue
        chosen.append(change)
        if peak_of(plan, gpus) <= limit:
            return _without_needless(chosen, plan, planner, limit, gpus)
    return None


def _without_needless(chosen: Sequence[Mapping[str, Any]], plan: Plan, planner: Planner, limit: int, gpus: int) -> Fit:
    """Return the fit of some changes, without those that are not necessary; the last one is."""
    kept = list(chosen)
    for change in chosen[:-1]:
        rest = [other for other in kept if other is not change]
        smaller = _planned(planner, rest)
        if smaller is not None and peak_of(smaller, gpus) <= limit:
            kept, plan = rest, smaller
    return Fit(plan, _joined(kept))


def _planned(planner: Planner, changes: Sequence[Mapping[str, Any]]) -> Plan | None:
    """Return the plan of some changes; None if the rules of the config refuse them."""
    try:
        return planner(_joined(changes))
    except UserError:
        return None


def _joined(changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return changes as one; of a key with several values the last one counts."""
    return {key: value for change in changes for key, value in change.items()}


def steps(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield changes that lower memory, those with the least influence on the result first."""
    config = plan.config
    model, training = config.model_args, config.training_args
    family = FAMILIES.find(model.type, model.part)
    parts = trained_parts(model)
    if not any(training.get(name) for name in CHECKPOINTING):
        yield {"training_args.gradient_checkpointing": True}
    if "8bit" not in str(training["optim"]):
        yield {"training_args.optim": "paged_adamw_8bit"}
    quantizes = family.cannot_quantize is None and not parts.full.keys() & {"language", "vision"}
    if quantizes and not model.load_in_4bit:
        if not model.load_in_8bit:
            yield {"model_args.load_in_8bit": True}
        yield {"model_args.load_in_8bit": False, "model_args.load_in_4bit": True}
    for key in family.memory_keys:
        value = vars(model)[key]
        while value and value // 2 >= SMALLEST.get(key, 32):
            value //= 2
            yield {f"model_args.{key}": value}
    if model.part is None:
        length = model.max_length
        while length // 2 >= SMALLEST["max_length"]:
            length //= 2
            yield {"model_args.max_length": length}
    if parts.has_lora and model.lora_r and model.lora_r > SMALLEST["lora_r"]:
        yield {"model_args.lora_r": max(SMALLEST["lora_r"], model.lora_r // 4)}
