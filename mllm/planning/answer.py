"""Answer of `mllm plan`: the plan of a config, the card, the search and the rate together."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm.config.hardware import Hardware, detect
from mllm.errors import ConfigError, UserError
from mllm.planning.cards import UTILIZATION, Card, card_of_memory, find_card, smallest_card, usable_memory
from mllm.planning.plan import Plan, check_changes, plan
from mllm.planning.processes import peak_of
from mllm.planning.render import Answer, Rate, changes_text
from mllm.planning.search import fitting, largest_micro_batch
from mllm.run_files import FACTS

logger = logging.getLogger(__name__)
ANY = Hardware("cuda", "any GPU", (12, 0), 0, 1, 0, 8)
"""Hardware without a limit."""


class ConfigPlanner:
    """Plans of a config with changes, each computed once. Each is logged, because a search takes up to a minute."""

    def __init__(self, path: str, overrides: Sequence[str], hardware: Hardware, tiny: bool) -> None:
        self.plans: dict[str, Plan] = {}
        """Plans by their changes as JSON."""
        self._arguments = path, overrides, hardware
        self._tiny = tiny

    def __call__(self, changes: Mapping[str, Any]) -> Plan:
        """Return the plan of the config with some changes. Raises `UserError` if they are refused."""
        key = json.dumps(changes, sort_keys=True)
        if key not in self.plans:
            text = changes_text(changes).removeprefix("--cfg-options ") if changes else "the config"
            logger.info("plan %d: %s", len(self.plans) + 1, text)
            self.plans[key] = plan(*self._arguments, changes, tiny=self._tiny)
        return self.plans[key]

    def allows(self, changes: Mapping[str, Any]) -> bool:
        """Return False if the rules refuse the changes."""
        try:
            check_changes(*self._arguments, changes, tiny=self._tiny)
        except UserError:
            return False
        return True


def answer(
    path: str,
    overrides: Sequence[str] = (),
    *,
    gpu: str | None = None,
    memory: int | None = None,
    gpus: int = 1,
    measured: str | None = None,
    price: float | None = None,
    tiny: bool = False,
) -> Answer:
    """Return the answer of `mllm plan`.

    Args:
        path: File of the config.
        overrides: Overrides of the command line.
        gpu: Name of a card; None with `memory`, or for the GPU of this machine.
        memory: Bytes of a GPU.
        gpus: Number of GPUs, each with a process.
        measured: A run folder whose speed is used.
        price: Price of a GPU for an hour.
        tiny: Plan the tiny checkpoints of `--tiny`.

    Raises:
        ConfigError: The config cannot run on the card, or an argument is invalid.
    """
    card, limit, hardware = _target(gpu, memory, gpus)
    rate = None if measured is None else measured_rate(Path(measured))
    planner = ConfigPlanner(path, overrides, hardware, tiny)
    first = planner({})
    need = peak_of(first, gpus)
    capability = (8, 0) if first.config.training_args["bf16"] else (7, 0)
    smallest = smallest_card(need, capability)
    fit = refusal = None
    if limit is not None:
        if need <= limit:
            fit = largest_micro_batch(first, planner, limit, {}, gpus)
        else:
            fit = fitting(first, planner, limit, gpus)
            if fit is None:
                changes, least = min(planner.plans.items(), key=lambda item: peak_of(item[1], gpus))
                tried = f" with {changes_text(json.loads(changes))}" if changes != "{}" else ""
                refusal = _refusal(first, least, tried, card, limit, gpus, capability)
    if rate is None and card is not None and card.half:
        speed = card.single if first.config.training_args["bf16"] is False and _is_single(first) else card.half
        rate = Rate(speed * 1e12 * UTILIZATION, f"{UTILIZATION:.0%} of the {speed:g} * 10^12 a second of {card.name}")
    return Answer(first.config.name, first, card, limit, gpus, fit, smallest, rate, price, refusal)


def _is_single(plan: Plan) -> bool:
    """Return True if the weights of the plan are in fp32."""
    components = plan.update.components
    sizes = {name.rpartition(" ")[2]: 0 for name in components if " in " in name}
    for name, size in components.items():
        if " in " in name:
            sizes[name.rpartition(" ")[2]] += size
    return bool(sizes) and max(sizes, key=lambda dtype: sizes[dtype]) == "float32"


def _target(gpu: str | None, memory: int | None, gpus: int) -> tuple[Card | None, int | None, Hardware]:
    """Return the card, the bytes that tensors can occupy, and the hardware for the rules."""
    if gpu is not None:
        card = find_card(gpu)
        return card, card.usable, card.hardware(gpus)
    if memory is not None:
        card = card_of_memory(memory)
        return card, usable_memory(memory), card.hardware(gpus)
    hardware = detect()
    if hardware.device != "cuda":
        return None, None, ANY
    assert hardware.capability is not None
    try:
        known = find_card(hardware.name)
    except ConfigError:  # a card without a row has no rates
        known = Card(hardware.name, 0.0, hardware.capability, 0.0, 0.0, "")
    card = replace(known, memory=hardware.memory / 2**30)
    return card, usable_memory(hardware.memory), hardware


def _refusal(
    first: Plan, least: Plan, tried: str, card: Card | None, limit: int, gpus: int, capability: tuple[int, int]
) -> str:
    """Return the error of a config that no change makes fit. The changes of its least plan are `tried`."""
    assert card is not None
    fits = smallest_card(peak_of(least, gpus), capability)
    other = (
        "no card of the table is large enough" if fits is None else f"the smallest card that fits then is {fits.name}"
    )
    return (
        f"{first.config.name} needs {peak_of(first, gpus) / 1e9:.1f} GB, and {card.name} has {limit / 1e9:.1f} GB for "
        "tensors: no change that mllm plan tries makes it fit; the least is "
        f"{peak_of(least, gpus) / 1e9:.1f} GB{tried}, and {other}"
    )


def measured_rate(folder: Path) -> Rate:
    """Return the operations a second of a run, from the plan and the speed in its `facts.json`.

    Raises:
        ConfigError: There is no such file, or it has no plan or no speed.
    """
    file = folder / FACTS
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--measured: {file} cannot be read ({error}): name the folder of a finished run") from error
    memory = facts.get("memory") if isinstance(facts, dict) else None
    values = memory if isinstance(memory, dict) else {}
    figures = [values.get(key) for key in ("flops_per_token", "tokens_per_second")]
    numbers = [float(value) for value in figures if isinstance(value, int | float) and 0 < value < math.inf]
    if len(numbers) < len(figures):
        raise ConfigError(
            f"--measured: {file} has no plan with a speed: use a run of a model of texts that was trained with a plan "
            "(always done on a GPU, otherwise with `mllm train --plan`)"
        )
    return Rate(math.prod(numbers), f"the speed of {folder}")
