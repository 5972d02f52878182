"""Selection of the layers that an adapter changes, by a regular expression over full module names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

from mllm.errors import ConfigError, hint
from mllm.models.adapters.language_layers import describe_kinds, describe_rest, language_layers

logger = logging.getLogger(__name__)

ADAPTABLE = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layer types that PEFT can adapt. `Conv1D` is the Linear layer of GPT-2, whose weight is transposed [in, out].

The Linear layers of bitsandbytes are subclasses of `nn.Linear`.
"""

TOWERS = ("language", "vision")
"""Targets that every family with these towers has."""


def pattern_of(names: Iterable[str], model: nn.Module) -> str:
    """Return a short regular expression that matches exactly the modules `names` among those of `model`."""
    names = set(names)
    escaped = {re.escape(name) for name in names}
    short = "|".join(sorted({re.sub(r"(?<=\\\.)\d+(?=\\\.|$)", r"\\d+", name) for name in escaped}))
    return short if matching(short, model) == names else "|".join(sorted(escaped))


def matching(pattern: str, model: nn.Module) -> set[str]:
    """Return the names of the modules of `model` that `pattern` matches in full, as in PEFT."""
    compiled = re.compile(pattern)
    return {name for name, _ in model.named_modules() if compiled.fullmatch(name)}


def derived_targets(model: nn.Module, towers: Mapping[str, str]) -> dict[str, str]:
    """Return patterns of layers in the towers 'language' and 'vision', for families without patterns.

    `towers` maps names to prefixes of module names, such as `{"vision": "model.vision_tower"}`. 'language' are the
    Linear layers of attention and MLP, see `language_layers`; 'vision' are all Linear layers. If one tower is inside
    another (a projector inside the vision tower), its layers belong to the inner one only. Projectors belong to
    neither target. A target without layers is left out.
    """
    modules = dict(model.named_modules())
    names = {"vision": [name for name, module in modules.items() if isinstance(module, nn.Linear)]}
    if "language" in towers:
        prefix = towers["language"]
        names["language"] = [f"{prefix}.{name}" for name in language_layers(modules[prefix])]
    own = {tower: [name for name in names.get(tower, []) if tower_of(name, towers) == tower] for tower in TOWERS}
    return {tower: pattern_of(layers, model) for tower, layers in own.items() if layers}


def tower_of(name: str, towers: Mapping[str, str]) -> str:
    """Return the innermost tower that contains a module or parameter; empty if none does.

    The prefix of a tower is empty if it is the whole model.
    """
    inside = [tower for tower, prefix in towers.items() if not prefix or name.startswith(f"{prefix}.")]
    return max(inside, key=lambda tower: len(towers[tower]), default="")


def resolve_target(model: nn.Module, lora_target: str, targets: Mapping[str, str]) -> str:
    """Return the regular expression of `lora_target`: a name in `targets`, 'all' of them, or an expression.

    Raise `ConfigError` if the expression is invalid, matches no module, matches a module that cannot have an adapter,
    or matches an output projection that shares its weight with the embedding.
    """
    if lora_target == "all" and not targets:
        raise ConfigError(_no_match_message(lora_target, targets, dict(model.named_modules())))
    if lora_target == "all":
        pattern = "|".join(f"(?:{part})" for part in targets.values())
    else:
        pattern = targets.get(lora_target, lora_target)
    try:
        names = matching(pattern, model)
    except re.error as error:
        raise ConfigError(f"lora_target = '{lora_target}' is not a valid regular expression: {error}") from error
    modules = dict(model.named_modules())
    if not names:
        raise ConfigError(_no_match_message(lora_target, targets, modules))
    for name in sorted(names):
        if not isinstance(modules[name], ADAPTABLE):
            raise ConfigError(
                f"lora_target = '{lora_target}' matches {name}, a {type(modules[name]).__name__}, which cannot have an "
                "adapter; match Linear or convolution layers only"
            )
        groups = modules[name].groups if isinstance(modules[name], nn.Conv2d) else 1
        if groups != 1:
            raise ConfigError(
                f"lora_target = '{lora_target}' matches {name}, a convolution with {groups} groups, which would "
                "have to divide the rank of the LoRA; leave depthwise convolutions out (lora_target='vision' does)"
            )
        if _is_tied(modules[name], modules):
            raise ConfigError(
                f"lora_target = '{lora_target}' matches {name}, which shares its weight with the token embedding; "
                "an adapter on one of the two would untie them: leave it out"
            )
    log_targets(names, targets, modules)
    return pattern


def log_targets(names: Iterable[str], targets: Mapping[str, str], modules: Mapping[str, nn.Module]) -> None:
    """Log the kinds of layers with an adapter in each tower, and the kinds without one.

    `names` are the adapted layers among `modules`.
    """
    adapted = set(names)
    layers: dict[str, list[str]] = {}
    for name in (name for name in modules if name in adapted):
        tower = next((tower for tower, pattern in targets.items() if re.fullmatch(pattern, name)), "other")
        layers.setdefault(tower, []).append(name)
    for tower, own in layers.items():
        logger.info("adapter in %d %s layers: %s", len(own), tower, describe_kinds(own))
    logger.info("without an adapter: %s", describe_rest(modules, adapted, targets))


def _is_tied(module: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    """Return True if the module shares its weight with an embedding."""
    tables = [other.weight for other in modules.values() if isinstance(other, nn.Embedding)]
    return isinstance(module, nn.Linear) and any(module.weight is table for table in tables)


def _no_match_message(lora_target: str, targets: Mapping[str, str], modules: Mapping[str, nn.Module]) -> str:
    """Return the error message for a target that matches no module, with one example name per kind of layer."""
    if lora_target in (*TOWERS, "all"):
        part = "the model" if lora_target == "all" else "this part of the model"
        return f"lora_target = '{lora_target}' matches no layer: a LoRA can adapt no layer of {part}"
    if re.fullmatch(r"\w+", lora_target) and lora_target not in targets:
        known = hint(lora_target, [*targets, "all"])
        return f"lora_target = '{lora_target}' is neither a known target nor the full name of a module{known}"
    kinds = {name.rsplit(".", 1)[-1]: name for name, module in modules.items() if isinstance(module, nn.Linear)}
    examples = ", ".join(sorted(kinds.values())[:6])
    return f"lora_target = '{lora_target}' matches no module; it must match full names such as {examples}"
