"""Lower bounds of the peak memory of a config, from plans of other configs, which exclude changes without a plan.

Between two configs of a search, the bytes of a component change at most by a known factor: a micro-batch of half the
samples needs at least half of the activations, and AdamW in 8 bits a quarter of the states. Weights and states of the
optimizer exist during the whole update; the other components are those at the peak of one plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from mllm.config.schema import RunConfig
from mllm.engine.builder import CHECKPOINTING
from mllm.planning.plan import Plan
from mllm.planning.processes import peak_of
from mllm.planning.step import (
    ACTIVATIONS,
    EMBEDDING,
    GRADIENTS,
    LOSS,
    OPTIMIZER,
    TEACHER,
    TRAINED,
    WEIGHTS,
    Update,
    by_kind,
)

MARGIN = 0.95
"""Factor of a bound, for what does not follow the factors exactly, such as the padding of a last part."""
CONSTANT = (WEIGHTS, TRAINED, OPTIMIZER, TEACHER)
"""Components that exist during the whole update."""
BITS = {"float32": 32, "float16": 16, "bfloat16": 16}
"""Bits of a number of weights that can be quantized."""


def least_peak(plans: Iterable[Plan], config: RunConfig, samples: int, gpus: int) -> int:
    """Return a lower bound of the peak memory of one process in bytes.

    Args:
        plans: Plans of the same config with other changes.
        config: The config with the changes of which the peak is bounded.
        samples: Number of samples of its micro-batch.
        gpus: Number of processes.
    """
    plans = list(plans)
    constant: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for plan in plans:
        own = _scaled(plan, config, samples)
        for kind in CONSTANT:
            constant[kind] = max(constant[kind], own.pop(kind, 0))
        rest = max(rest, own, key=lambda kinds: kinds.total())
    components = {kind: int(size) for kind, size in (constant + rest).items()}
    trained = min(int(plan.update.trained * _rank(plan, config)) for plan in plans)
    update = Update(sum(components.values()), components, 0, trained)
    return int(MARGIN * peak_of(replace(plans[0], update=update, per_sample_gradients=0), gpus))


def _scaled(plan: Plan, config: RunConfig, samples: int) -> Counter[str]:
    """Return the least bytes by kind of component, at the moment of the peak of a plan."""
    known, model = plan.config.model_args, config.model_args
    rank = _rank(plan, config)
    length = min(1.0, model.max_length / known.max_length)
    # Without packing, masks grow with the square of the length.
    rows = min(1.0, samples / plan.samples) * (length if config.data_args.packing else length**2) * rank
    if _checkpoints(config) and not _checkpoints(plan.config):
        rows = 0.0
    bits = _bits(config)
    packs = bits < _bits(plan.config)
    if packs:
        rows *= 0.5  # the products of packed weights need other buffers
    image = 1.0
    for key in ("image_size", "image_token_len"):
        before, after = vars(known).get(key), vars(model).get(key)
        if before and after and after < before:
            image *= (after / before) ** (4 if key == "image_size" else 2)
    scaled: Counter[str] = Counter()
    for name, size in plan.update.components.items():
        kind = next(iter(by_kind({name: size})))
        if kind == WEIGHTS:
            is_packed = packs and not name.startswith(EMBEDDING)
            factor = min(1.0, bits / BITS.get(name.rpartition(" ")[2], 8)) if is_packed else 1.0
        elif kind in (TRAINED, GRADIENTS):
            factor = rank
        elif kind == OPTIMIZER:
            factor = rank * (0.25 if _is_8bit(config) and not _is_8bit(plan.config) else 1.0)
        elif kind == TEACHER:
            factor = 1.0
        else:
            is_language = plan.tokens > 0 and name in (f"{ACTIVATIONS}: language", LOSS)
            factor = rows * (1.0 if is_language or plan.stores_features else image)
        scaled[kind] += size * factor  # type: ignore[assignment]
    return scaled


def _rank(plan: Plan, config: RunConfig) -> float:
    """Return the ratio of the ranks of the LoRA, at most 1."""
    before, after = plan.config.model_args.lora_r, config.model_args.lora_r
    return min(1.0, after / before) if before and after else 1.0


def _checkpoints(config: RunConfig) -> bool:
    return any(config.training_args.get(name) for name in CHECKPOINTING)


def _bits(config: RunConfig) -> int:
    """Return the number of bits of a number of a frozen layer, at least; 32 without quantization."""
    model = config.model_args
    return 4 if model.load_in_4bit else 8 if model.load_in_8bit else 32


def _is_8bit(config: RunConfig) -> bool:
    return "8bit" in str(config.training_args["optim"])
