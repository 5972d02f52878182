"""Search for the largest micro-batch that fits, and for the smallest change of a config that makes it fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mllm.config.trainable import trained_parts
from mllm.engine.builder import CHECKPOINTING, logical_batch_size
from mllm.errors import UserError
from mllm.family import FAMILIES
from mllm.planning.bounds import MARGIN, least_peak
from mllm.planning.plan import Plan
from mllm.planning.processes import peak_of

SMALLEST = {"image_size": 448, "image_token_len": 64, "max_length": 256, "lora_r": 4}
"""Smallest values that the search tries; a config may have smaller ones."""
LONG = 2**14
"""Number of tokens of a micro-batch above which a plan takes so long that a shorter one may replace it."""


class Planner(Protocol):
    """Plans of a config with changes by dotted key."""

    def __call__(self, changes: Mapping[str, Any], /) -> Plan:
        """Return a plan. Raises `UserError` if the changes are refused."""
        ...

    def allows(self, changes: Mapping[str, Any], /) -> bool:
        """Return False if the rules of the config refuse the changes, which takes less time than a plan."""
        ...


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
    if other_size < first.samples:
        if least_peak([first], first.config.replaced(**sized), other_size, gpus) > limit:
            return None
    elif peak_of(first, gpus) > limit or _doubles_beyond(first, planner, limit, changes, gpus):
        return Fit(first, changes) if peak_of(first, gpus) <= limit else None
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


def _doubles_beyond(first: Plan, planner: Planner, limit: int, changes: Mapping[str, Any], gpus: int) -> bool:
    """Return True if a micro-batch of two long samples exceeds `limit` bytes, without its plan.

    The peak is a maximum over time of sums that grow at least linearly with the tokens. So it grows from one sample to
    two by at least as many bytes for a token as from a shorter sample to this one.
    """
    if first.tokens <= LONG:
        return False
    short = {**changes, "model_args.max_length": first.config.model_args.max_length // 16}
    if isinstance(first.config.data_args.tokens_per_micro_batch, int):
        short["data_args.tokens_per_micro_batch"] = first.tokens // 16
    if not planner.allows(short):
        return False
    shorter = planner(short)
    tokens = first.tokens - shorter.tokens
    growth = max(0, peak_of(first, gpus) - peak_of(shorter, gpus)) * first.tokens // max(1, tokens)
    return shorter.samples == first.samples and peak_of(first, gpus) + int(MARGIN * growth) > limit


def fitting(first: Plan, planner: Planner, limit: int, gpus: int) -> Fit | None:
    """Return the plan with the smallest change that fits `limit` bytes; None if no change does.

    Smaller micro-batches are tried first, then the changes of `steps`, each in addition to those before it. Of the
    changes together, those without which the config fits as well are left out again. A change is planned only if the
    lower bound of its peak does not exceed the limit; every fit is a plan.
    """
    best = largest_micro_batch(first, planner, limit, {}, gpus)
    if best is not None:
        return best
    search = _Search(first, planner, limit, gpus)
    smaller = sizes(first, 1) if first.samples > 1 else {}
    chosen: list[Mapping[str, Any]] = [smaller] if smaller else []
    for change in steps(first):
        changes = [*chosen, change]
        if not planner.allows(_joined(changes)):
            continue
        if search.exceeds(changes):
            chosen = changes
            continue
        plan = search.plan(changes)
        if plan is None:
            chosen = search.accepted(chosen)
            continue
        chosen = changes
        if peak_of(plan, gpus) <= limit:
            return search.without_needless(chosen, plan)
    search.plan(chosen)  # the least peak, for the message
    return None


class _Search:
    """Plans of a search, and lower bounds from them."""

    def __init__(self, first: Plan, planner: Planner, limit: int, gpus: int) -> None:
        self.first, self.planner, self.limit, self.gpus = first, planner, limit, gpus
        self.plans = [first]

    def exceeds(self, changes: Sequence[Mapping[str, Any]]) -> bool:
        """Return True if some changes exceed the limit by the plans so far."""
        joined = _joined(changes)
        is_small = self.first.samples == 1 or sizes(self.first, 1).items() <= joined.items()
        is_small = is_small or "model_args.max_length" in joined
        config = self.first.config.replaced(**joined)
        return least_peak(self.plans, config, 1 if is_small else self.first.samples, self.gpus) > self.limit

    def plan(self, changes: Sequence[Mapping[str, Any]]) -> Plan | None:
        """Return the plan of some changes; None if they are refused."""
        try:
            plan = self.planner(_joined(changes))
        except UserError:
            return None
        self.plans.append(plan)
        return plan

    def accepted(self, chosen: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the changes with which a plan is possible, of those that were chosen without one."""
        kept: list[Mapping[str, Any]] = list(chosen)
        if not kept or self.plan(kept) is not None:
            return kept
        kept = []
        for change in chosen:
            if self.plan([*kept, change]) is not None:
                kept.append(change)
        return kept

    def without_needless(self, chosen: Sequence[Mapping[str, Any]], plan: Plan) -> Fit:
        """Return the fit of some changes, without those that are not necessary; the last one is."""
        kept = list(chosen)
        for change in chosen[:-1]:
            rest = [other for other in kept if other is not change]
            if _joined(rest) == _joined(kept):
                kept = rest
                continue
            smaller = None if self.exceeds(rest) else self.plan(rest)
            if smaller is not None and peak_of(smaller, self.gpus) <= self.limit:
                kept, plan = rest, smaller
        return Fit(plan, _joined(kept))


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
    # Features that are stored before the training leave the tokens of a text as they are.
    for key in () if plan.stores_features else family.memory_keys:
        value = vars(model)[key]
        while value and value // 2 >= SMALLEST.get(key, 32):
            value //= 2
            yield {f"model_args.{key}": value}
    if model.part is None:
        length = model.max_length
        while length // 2 >= SMALLEST["max_length"]:
            length //= 2
            change: dict[str, Any] = {"model_args.max_length": length}
            if isinstance(config.data_args.tokens_per_micro_batch, int):
                # Otherwise the micro-batch would have more samples, and as many tokens.
                tokens = max(1, plan.tokens // plan.samples)
                change["data_args.tokens_per_micro_batch"] = math.ceil(tokens * length / model.max_length)
            yield change
    if parts.has_lora and model.lora_r and model.lora_r > SMALLEST["lora_r"]:
        yield {"model_args.lora_r": max(SMALLEST["lora_r"], model.lora_r // 4)}
