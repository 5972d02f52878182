"""Check of an adapter against vLLM's LoRA loader (source: vllm/lora/peft_helper.py).

The loader uses rank, alpha, `use_rslora` and the names of the tensors in `adapter_model.safetensors`. It ignores or
refuses all other keys of adapter_config.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mllm.models.adapters.files import KEY

LARGEST_RANK = 512
"""The largest `--max-lora-rank` of vLLM."""
LINEAR = ("lora_A.weight", "lora_B.weight")
"""The tensors of a layer that vLLM loads."""


def vllm_obstacles(config: Any, keys: Iterable[str], language: str | None, has_other_weights: bool) -> list[str]:
    """Return the reasons why vLLM would refuse an adapter or apply it incorrectly; none if it loads it.

    `config` is a `peft.LoraConfig` and `keys` are the names of the tensors. `language` is the prefix of the language
    model's modules. `has_other_weights` is True if more than the LoRA was trained.
    """
    reasons = []
    if config.use_dora:
        reasons.append("it is a DoRA adapter: merge it")
    if config.rank_pattern or config.alpha_pattern:
        reasons.append("ranks or alphas differ between layers, and vLLM applies one scaling to all: merge it")
    if config.r > LARGEST_RANK:
        reasons.append(f"its rank {config.r} is above {LARGEST_RANK}: merge it")
    if config.bias != "none" or config.modules_to_save:
        reasons.append("it contains biases or whole modules: merge it")
    matches = [match for match in map(KEY.fullmatch, keys) if match]
    if other := sorted({match["module"] for match in matches if match["part"] not in LINEAR and not config.use_dora}):
        reasons.append(f"it adapts {other[0]}, which is not a Linear layer: merge it")
    towers = [match["module"] for match in matches if language and not match["module"].startswith(f"{language}.")]
    if towers:
        reasons.append(f"it adapts {towers[0]}, and vLLM applies LoRA only to the language model: merge it")
    if has_other_weights:
        reasons.append("heads.safetensors contains other trained parts: merge it, or use it with mllm")
    return reasons
