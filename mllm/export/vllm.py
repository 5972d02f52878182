"""Whether vLLM's LoRA loader reads an adapter, and if not, why: read from its source (vllm/lora/peft_helper.py).

It takes rank, alpha, `use_rslora` and the names of the tensors in `adapter_model.safetensors`; what else an
adapter_config.json says it ignores in silence or refuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mllm.models.adapters.files import KEY

LARGEST_RANK = 512
"""The largest `--max-lora-rank` that vLLM offers."""
LINEAR = ("lora_A.weight", "lora_B.weight")
"""What it reads of a layer."""


def vllm_obstacles(config: Any, keys: Iterable[str], language: str | None, beside: bool) -> list[str]:
    """Reasons why vLLM would refuse an adapter or apply it wrongly; empty where it reads it.

    `config` is a `peft.LoraConfig` and `keys` are the names of the tensors; `language` is the prefix of the language
    model's modules, and `beside` says whether more than the LoRA was trained.
    """
    reasons = []
    if config.use_dora:
        reasons.append("it is a DoRA adapter: merge it")
    if config.rank_pattern or config.alpha_pattern:
        reasons.append(
            "its ranks or alphas differ from layer to layer, and vLLM would apply one scaling to all: merge it"
        )
    if config.r > LARGEST_RANK:
        reasons.append(f"its rank {config.r} is above {LARGEST_RANK}: merge it")
    if config.bias != "none" or config.modules_to_save:
        reasons.append("it holds biases or whole modules: merge it")
    matches = [match for match in map(KEY.fullmatch, keys) if match]
    if other := sorted({match["module"] for match in matches if match["part"] not in LINEAR and not config.use_dora}):
        reasons.append(f"it adapts {other[0]}, which is no Linear layer: merge it")
    towers = [match["module"] for match in matches if language and not match["module"].startswith(f"{language}.")]
    if towers:
        reasons.append(f"it adapts {towers[0]}, and vLLM's LoRA is for the language model: merge it")
    if beside:
        reasons.append("heads.safetensors holds what was trained beside it: merge it, or use it with mllm")
    return reasons
