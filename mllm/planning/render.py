"""Text and JSON of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm.engine.builder import logical_batch_size
from mllm.planning.cards import Card
from mllm.planning.plan import Plan
from mllm.planning.processes import peak_of, update_peak_of
from mllm.planning.search import Fit

GB = 1e9
SMALL = 0.005
"""Components below this number of GB are summed up."""


@dataclass(frozen=True)
class Rate:
    """Operations a second of a training."""

    flops: float
    source: str


@dataclass(frozen=True)
class Answer:
    """A plan with all that a command says about it."""

    name: str
    plan: Plan
    card: Card | None
    """The GPU; None: only its memory is known, or nothing."""
    limit: int | None
    """Bytes that tensors can occupy; None: no GPU was named."""
    gpus: int
    fit: Fit | None
    """The plan with the largest micro-batch, or with the smallest change, that fits; None: nothing was searched."""
    smallest: Card | None
    """The smallest card of the table in which the plan fits."""
    rate: Rate | None
    price: float | None
    """Price of a GPU for an hour."""
    refusal: str | None = None
    """Error of a config that does not fit, and that no change makes fit."""

    @property
    def peak(self) -> int:
        """Return the peak memory of a GPU in bytes."""
        return peak_of(self.plan, self.gpus)

    @property
    def fits(self) -> bool | None:
        """Return True if the config fits as it is; None without a GPU."""
        return None if self.limit is None else self.peak <= self.limit

    @property
    def seconds_per_sample(self) -> float | None:
        """Return the time of a sample on all GPUs, or None without a rate."""
        return None if self.rate is None else self.plan.flops_per_sample / self.rate.flops / self.gpus

    @property
    def hours_per_epoch(self) -> float | None:
        """Return the hours of an epoch, or None if the rate or the number of rows is unknown."""
        if self.seconds_per_sample is None or self.plan.rows is None:
            return None
        return self.seconds_per_sample * self.plan.rows / 3600

    @property
    def cost_per_epoch(self) -> float | None:
        """Return the cost of an epoch in the currency of the price, or None."""
        if self.price is None or self.hours_per_epoch is None:
            return None
        return self.hours_per_epoch * self.price * self.gpus


def as_text(answer: Answer) -> str:
    """Return an answer as aligned text."""
    plan, update = answer.plan, answer.plan.update
    config = plan.config
    tokens = f" of {plan.tokens // plan.samples:,} tokens" if plan.tokens else ""
    per_update = logical_batch_size(config.training_args)
    lines = [
        f"{answer.name}: {plan.samples} sample{'s' * (plan.samples != 1)}{tokens} in a forward pass, "
        f"{per_update} in an update{f' on each of {answer.gpus} GPUs' if answer.gpus > 1 else ''}, "
        f"{update.trained:,} trained parameters",
        "",
        "memory at the peak, in GB of 10^9 bytes",
    ]
    components = dict(update.components)
    if plan.per_sample_gradients:
        components["gradients of each sample"] = plan.per_sample_gradients
    large = {name: size for name, size in components.items() if size / GB >= SMALL}
    lines += [f"  {name:<32}{size / GB:>8.2f}" for name, size in sorted(large.items(), key=lambda item: -item[1])]
    rest = sum(components.values()) - sum(large.values())
    lines += [f"  {'others':<32}{rest / GB:>8.2f}"] if rest / GB >= SMALL else []
    if answer.gpus > 1:
        shared = answer.peak - plan.peak
        label = f"{plan.shards or 'DDP'} over {answer.gpus} GPUs"
        lines.append(f"  {label:<32}{shared / GB:>+8.2f}")
    lines += [f"  {'sum':<32}{answer.peak / GB:>8.2f}", ""]
    lines += _speed(answer)
    lines += _verdict(answer)
    return "\n".join([*lines, *_notes(answer)])


def _speed(answer: Answer) -> list[str]:
    plan = answer.plan
    lines = [f"operations: {plan.flops_per_sample / 1e12:.2f} * 10^12 for a sample, recomputed activations included"]
    seconds = answer.seconds_per_sample
    if seconds is None or answer.rate is None:
        unknown = "--gpu NAME of a card in the table or --measured RUN gives a rate"
        return [*lines, f"cost: unknown, because the rate is unknown: {unknown}"] if answer.price else lines
    step = seconds * logical_batch_size(plan.config.training_args) * answer.gpus
    text = f"time: {_duration(step)} for an update"
    if answer.hours_per_epoch is not None:
        text += f", {_duration(answer.hours_per_epoch * 3600)} for an epoch of {plan.rows:,} samples"
    lines.append(f"{text}, if all samples have the greatest length ({answer.rate.source})")
    if answer.cost_per_epoch is not None:
        lines.append(f"cost: {answer.cost_per_epoch:.2f} for an epoch at {answer.price:g} for an hour of a GPU")
    elif answer.price is not None:
        lines.append("cost: unknown, because the number of samples is unknown without the data")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _verdict(answer: Answer) -> list[str]:
    if answer.limit is None:
        card = "none of the table" if answer.smallest is None else answer.smallest.name
        return [f"smallest card that fits: {card}; --gpu NAME or --memory 16GB plans for a GPU"]
    assert answer.card is not None
    room = f"{answer.peak / GB:.1f} of {answer.limit / GB:.1f} GB that tensors can occupy on {answer.card.name}"
    if answer.fits:
        lines = [f"fits: {room}"]
        if answer.fit is not None and answer.fit.plan.samples > answer.plan.samples:
            lines.append(f"largest micro-batch: {answer.fit.plan.samples} samples: {changes_text(answer.fit.changes)}")
        elif answer.fit is not None:
            lines.append(f"largest micro-batch: {answer.fit.plan.samples}, as in the config")
        return lines
    lines = [f"does not fit: {room}"]
    if answer.fit is not None:
        peak = peak_of(answer.fit.plan, answer.gpus)
        lines.append(f"smallest change that fits ({peak / GB:.1f} GB): {changes_text(answer.fit.changes)}")
    return lines


def changes_text(changes: Mapping[str, Any]) -> str:
    """Return changes as the option of a command line."""
    return "--cfg-options " + " ".join(f"{key}={value}" for key, value in changes.items()) if changes else "none"


def _notes(answer: Answer) -> list[str]:
    plan = answer.plan
    notes = []
    if plan.rows is None:
        image = "a sample has one image (of each view), and " if plan.images else ""
        notes.append(f"the data are not read, so {image}the number of samples of an epoch is unknown")
    if plan.stores_features:
        notes.append("features of images are stored before the first update, so the vision tower does not run in it")
    if plan.config.data_args.share_images:
        notes.append("samples of the plan have no image in common; those that share one need less")
    if answer.gpus > 1 and plan.shards in ("zero3", "fsdp"):
        update = update_peak_of(plan, answer.gpus) / GB
        notes.append(
            "each GPU has all weights before the first update and after the last one; an update takes "
            f"{update:.2f} GB, of which {plan.gathered / GB:.2f} GB are weights that are gathered while they compute"
        )
    return [f"note: {note}" for note in notes]


def as_dict(answer: Answer) -> dict[str, Any]:
    """Return an answer for a JSON file. Sizes are in bytes, times in seconds."""
    plan = answer.plan
    return {
        "config": answer.name,
        "peak": answer.peak,
        "components": plan.update.components,
        "per_sample_gradients": plan.per_sample_gradients,
        "trained_parameters": plan.update.trained,
        "samples": plan.samples,
        "tokens": plan.tokens,
        "pieces": plan.pieces,
        "images": plan.images,
        "rows": plan.rows,
        "flops_per_sample": plan.flops_per_sample,
        "gpus": answer.gpus,
        "shards": plan.shards,
        "card": None if answer.card is None else answer.card.name,
        "limit": answer.limit,
        "fits": answer.fits,
        "fit": None
        if answer.fit is None
        else {
            "changes": dict(answer.fit.changes),
            "samples": answer.fit.plan.samples,
            "peak": peak_of(answer.fit.plan, answer.gpus),
        },
        "smallest_card": None if answer.smallest is None else answer.smallest.name,
        "rate": None if answer.rate is None else {"flops": answer.rate.flops, "source": answer.rate.source},
        "seconds_per_sample": _finite(answer.seconds_per_sample),
        "hours_per_epoch": _finite(answer.hours_per_epoch),
        "cost_per_epoch": _finite(answer.cost_per_epoch),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
