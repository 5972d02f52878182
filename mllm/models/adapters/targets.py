"""Selection of the layers that an adapter changes, by a regular expression over full module names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from torch import nn

from mllm.errors import ConfigError, hint

logger = logging.getLogger(__name__)

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layer types that PEFT can adapt. The Linear layers of bitsandbytes are subclasses of `nn.Linear`."""


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
    """Return patterns of the Linear layers in the towers 'language' and 'vision', for families without patterns.

    `towers` maps names to prefixes of module names, such as `{"vision": "model.vision_tower"}`. If one tower is inside
    another (a projector inside the vision tower), its layers belong to the inner one only. The output projection and
    projectors belong to neither target.
    """
    names: dict[str, list[str]] = {"language": [], "vision": []}
    for name, module in model.named_modules():
        inside = [tower for tower, prefix in towers.items() if name.startswith(f"{prefix}.")]
        tower = max(inside, key=lambda tower: len(towers[tower]), default="")
        if tower in names and isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            names[tower].append(name)
    return {tower: pattern_of(layers, model) for tower, layers in names.items() if layers}


def resolve_target(model: nn.Module, lora_target: str, targets: Mapping[str, str]) -> str:
    """Return the regular expression of `lora_target`: a name in `targets`, 'all' of them, or an expression.

    Raise `ConfigError` if the expression is invalid, matches no module, matches a module that cannot have an adapter,
    or matches an output projection that shares its weight with the embedding.
    """
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
    log_targets(names, targets)
    return pattern


def log_targets(names: Iterable[str], targets: Mapping[str, str]) -> None:
    """Log the number of layers with an adapter in each tower."""
    counts = dict.fromkeys([*targets, "other"], 0)
    for name in names:
        tower = next((tower for tower, pattern in targets.items() if re.fullmatch(pattern, name)), "other")
        counts[tower] += 1
    logger.info("adapter in %s", ", ".join(f"{count} {tower} layers" for tower, count in counts.items() if count))


def _is_tied(module: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    """Return True if the module shares its weight with an embedding."""
    tables = [other.weight for other in modules.values() if isinstance(other, nn.Embedding)]
    return isinstance(module, nn.Linear) and any(module.weight is table for table in tables)


def _no_match_message(lora_target: str, targets: Mapping[str, str], modules: Mapping[str, nn.Module]) -> str:
    """Return the error message for a target that matches no module, with one example name per kind of layer."""
    if re.fullmatch(r"\w+", lora_target) and lora_target not in targets:
        known = hint(lora_target, [*targets, "all"])
        return f"lora_target = '{lora_target}' is neither a known target nor the full name of a module{known}"
    kinds = {name.rsplit(".", 1)[-1]: name for name, module in modules.items() if isinstance(module, nn.Linear)}
    examples = ", ".join(sorted(kinds.values())[:6])
    return f"lora_target = '{lora_target}' matches no module; it must match full names such as {examples}"
