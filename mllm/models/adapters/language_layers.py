"""Linear layers of attention and MLP in a language model, and the weights without an adapter, by structure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

ROUTERS = re.compile(r"\w*router\w*|indexer")
"""Parts of a layer that choose experts, or the tokens that attention reads. No gradient reaches an indexer."""
OTHER_PARTS = re.compile(r"altup|laurel|per_layer_\w+|\w*norm\w*|\w*adapter\w*|(query|key|value)_global")
"""Parts of a layer outside of attention and MLP: those of Gemma 3n and Gemma 4, norms with Linear layers, and adapters
of the checkpoint, of which a text uses only some (Zamba 2, X-MOD). LED projects tokens with global attention by layers
of their own; an encoded text has no such tokens."""
OTHER_TOWERS = re.compile(r"\w*(vision|visual|image|audio|speech|video)\w*|patcher")
"""Models of another input inside a language model: T5Gemma 2, Phi-4 multimodal, and the patcher of BLT."""
NORMS_AROUND = re.compile(r"norm_att\w*_norm")
"""Module of DBRX with the attention and the norms around it."""
KERNEL_WEIGHTS = ("x_proj", "dt_proj", "out_proj")
"""Layers of a Mamba mixer whose weights are read directly by its kernel, which ignores adapters and quantization."""


def language_layers(tower: nn.Module) -> list[str]:
    """Return the names, below `tower`, of the Linear layers of attention and MLP in its layers.

    State-space mixers, linear attention and short convolutions count as attention, and experts that are Linear layers
    count as MLP. Layers outside of an `nn.ModuleList` are heads or projections of embeddings and are left out, and so
    are layers that share their weight with another one (Zamba): two adapters cannot be merged into one weight.
    """
    modules = dict(tower.named_modules())
    layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    uses = Counter(id(module.weight) for module in layers.values())
    return [name for name, module in layers.items() if uses[id(module.weight)] == 1 and _belongs(name, modules)]


def kernel_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers in Mamba mixers whose weights are read directly, so that they stay unquantized."""
    mixers = [name for name, module in model.named_modules() if _is_mamba(module)]
    return [f"{mixer}.{own}" for mixer in mixers for own in KERNEL_WEIGHTS]


def describe_kinds(names: Collection[str]) -> str:
    """Return the kinds of layers by their last name with their number: 'q_proj, k_proj (28 each), fc1 (2)'."""
    kinds = Counter(_kind(name) for name in names)
    by_count: dict[int, list[str]] = {}
    for kind, count in kinds.items():
        by_count.setdefault(count, []).append(kind)
    return ", ".join(
        f"{', '.join(same)} ({count}{' each' if len(same) > 1 else ''})" for count, same in by_count.items()
    )


def describe_rest(modules: Mapping[str, nn.Module], adapted: Collection[str], towers: Mapping[str, str]) -> str:
    """Return the kinds of modules with weight matrices that have no adapter, with their number.

    Layers that a pattern of `towers` matches count as one kind for each tower. Embeddings are left out.
    """
    kinds = []
    for name, module in modules.items():
        matrices = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 1]
        parts = name.split(".")
        if any(".".join(parts[:end]) in adapted for end in range(1, len(parts) + 1)):
            continue
        if matrices and not isinstance(module, nn.Embedding):
            fused = "expert" in name and any(parameter.ndim == 3 for parameter in matrices)
            tower = next((tower for tower, pattern in towers.items() if re.fullmatch(pattern, name)), None)
            kinds.append(f"{tower} layers" if tower else f"fused {_kind(name)}" if fused else name)
    return describe_kinds(kinds)


def _belongs(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Return True if a Linear layer is in attention or MLP of a layer of the language model."""
    parent, _, own = name.rpartition(".")
    parts = name.split(".")
    inside = any(isinstance(modules[".".join(parts[:end])], nn.ModuleList) for end in range(1, len(parts) - 1))
    named = [part for part in parts if not NORMS_AROUND.fullmatch(part)]
    if not inside or any(kind.fullmatch(part) for kind in (ROUTERS, OTHER_PARTS, OTHER_TOWERS) for part in named):
        return False
    if _has_groups(modules[name]):
        return False
    if any(_is_gate(".".join(parts[:end]), modules) for end in range(1, len(parts) + 1)):
        return False
    return not (own in KERNEL_WEIGHTS and _is_mamba(modules[parent]))


def _has_groups(layer: nn.Module) -> bool:
    """Return True for a Linear layer of groups (DeepSeek V4), whose outputs are not those of the whole input."""
    return isinstance(layer, nn.Linear) and "n_groups" in vars(layer)


def _is_gate(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Return True if a module chooses experts: its name is `gate`, and a sibling has experts."""
    parent, _, own = name.rpartition(".")
    return own == "gate" and any("expert" in sibling for sibling, _ in modules[parent].named_children())


def _is_mamba(mixer: nn.Module) -> bool:
    """Return True if a module is a Mamba mixer: it has the matrices A and D of a state-space model."""
    return {"A_log", "D"} <= {name for name, _ in mixer.named_parameters(recurse=False)}


def _kind(name: str) -> str:
    """Return the last part of a name that is not a number."""
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), name)
