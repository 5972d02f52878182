"""Runs of the configs of three sizes of cards, with random weights of their published shapes, for `check_gpu.py`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_runs import CHECKOUT, Machine, Row, Run, SkippedError, run

TIERS = {"4gb": "medgemma_4gb_test", "t4": "medgemma_16gb_medical", "ampere": "medgemma_16gb_ampere"}
"""Configs of three sizes of cards."""
STEPS = 3
"""Updates of a run of a tier."""
SHARD = 4 * 10**9
"""Largest size of a file of random weights, in bytes."""


def tier(name: str) -> Callable[[Machine], Row]:
    """Return the check of three steps of the config of a tier: peak memory, its plan, tokens per second and MFU."""

    def check(machine: Machine) -> Row:
        from mllm.config.hardware import detect

        path = str(CHECKOUT / f"config/training_configs/{TIERS[name]}.py")
        weights = machine.folder / "weights"
        overrides = [f"training_args.max_steps={STEPS}", "training_args.logging_steps=1", "training_args.report_to=[]"]
        overrides += ["training_args.save_strategy=no", "data_args.validation=None", "data_args.test=None"]
        options = ("--tiny",)
        if machine.is_gpu:
            refuse_unsuitable(TIERS[name], machine)
            write_checkpoint(path, weights)
            overrides.append(f"model_args.model_name_or_path={weights}")
            options = ()
        plan = planned(path, overrides, detect(), tiny=not machine.is_gpu)
        if machine.is_gpu and plan["peak"] > plan["usable"]:
            needs, has = plan["peak"] / 1e9, plan["usable"] / 1e9
            raise SkippedError(f"needs {needs:.1f} GB by its plan, and the card has {has:.1f} GB for tensors")
        result = run(machine, name, *overrides, config=path, options=options)
        return tier_row(name, result, plan)

    return check


def refuse_unsuitable(config: str, machine: Machine) -> None:
    """Raise `SkippedError` for a config that the card cannot compute."""
    if config.endswith("ampere") and machine.capability < (8, 0):
        raise SkippedError("bf16 needs compute capability 8.0")


def tier_row(name: str, result: Run, plan: dict[str, float]) -> Row:
    """Return the row of the run of a tier.

    The speed is that of the updates after the first. MFU is the share of the published rate, or else of the measured
    rate, that the operations of the plan reach; recomputed ones count.
    """
    first, last = result.rows[0], result.rows[-1]
    tokens = [row["tokens_per_second"] * row["seconds"] / (1 - row["padding_share"]) for row in (first, last)]
    speed = (tokens[1] - tokens[0]) / (last["seconds"] - first["seconds"])
    peak = max(row["peak_memory_gb"] for row in result.rows) * 1e9
    figures = {"peak": peak, "planned": plan["peak"], "tokens_per_second": speed, "losses": result.losses}
    text = f"peak {peak / 1e9:.2f} GB, plan {plan['peak'] / 1e9:.2f} GB, {speed:.0f} tokens/s"
    if plan["rate"]:
        figures["mfu"] = speed * plan["flops_per_token"] / plan["rate"]
        text += f", MFU {figures['mfu']:.1%} of {plan['rate'] / 1e12:.1f} * 10^12 operations/s"
    is_finite = len(result.losses) == STEPS and all(map(math.isfinite, result.losses))
    return Row(f"{STEPS} steps of {TIERS[name]}", "passed" if is_finite else "failed", text, figures)


def planned(path: str, overrides: Sequence[str], hardware: Any, tiny: bool) -> dict[str, float]:
    """Return peak memory and operations of a config by `mllm plan`, and the memory and the rate of the card."""
    from mllm.errors import ConfigError
    from mllm.planning.answer import ANY
    from mllm.planning.cards import find_card, usable_memory
    from mllm.planning.plan import plan

    result = plan(path, overrides, hardware if hardware.device == "cuda" else ANY, tiny=tiny)
    try:
        rate = find_card(hardware.name).half * 1e12
    except ConfigError:  # not in the table
        rate = 0.0
    tokens = max(1, result.tokens)
    usable = usable_memory(hardware.memory)
    return {"peak": result.peak, "usable": usable, "rate": rate, "flops_per_token": result.update.flops / tokens}


def write_checkpoint(path: str, folder: Path) -> None:
    """Write the checkpoint of a config with its published shapes and random weights, once.

    Raises:
        SkippedError: The disk has no room for it.
    """
    import torch
    from random_weights import write_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    from mllm.config.reading import read_config
    from mllm.planning.checkpoint import without_weights

    if folder.is_dir():
        return
    source = Path(without_weights(read_config(path).model_args, folder.with_name("parts")).model_name_or_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(source), dtype=torch.bfloat16)
    size, free = 2 * sum(parameter.numel() for parameter in model.parameters()), shutil.disk_usage(source).free
    if size * 1.1 > free:
        raise SkippedError(f"random weights need {size / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free")
    (source / "model.safetensors").unlink()
    write_weights(source, model, SHARD)
    source.rename(folder)
