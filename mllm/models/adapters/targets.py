"""Which layers an adapter goes into: a regular expression over full module names, held by name for every family."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from torch import nn

from mllm.errors import ConfigError, hint

logger = logging.getLogger(__name__)

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What PEFT can adapt; the Linear layers of bitsandbytes are subclasses of `nn.Linear`."""


def pattern_of(names: Iterable[str], model: nn.Module) -> str:
    """A short regular expression that matches exactly the modules called `names`, among those of `model`."""
    names = set(names)
    escaped = {re.escape(name) for name in names}
    short = "|".join(sorted({re.sub(r"(?<=\\\.)\d+(?=\\\.|$)", r"\\d+", name) for name in escaped}))
    return short if matching(short, model) == names else "|".join(sorted(escaped))


def matching(pattern: str, model: nn.Module) -> set[str]:
    """Names of the modules of `model` that `pattern` matches from the first letter to the last, as PEFT does."""
    compiled = re.compile(pattern)
    return {name for name, _ in model.named_modules() if compiled.fullmatch(name)}


def derived_targets(model: nn.Module, towers: Mapping[str, str]) -> dict[str, str]:
    """Patterns of the Linear layers inside the towers 'language' and 'vision', for a family not known by name.

    `towers` maps names to prefixes of module names, such as `{"vision": "model.vision_tower"}`. Where one tower lies
    inside another (a projector inside the vision tower), its layers belong to it alone; the output projection and
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
    """The regular expression that `lora_target` stands for: a name of `targets`, 'all' of them, or itself.

    Raises `ConfigError` where it is no regular expression, matches nothing, matches what cannot be adapted, or matches
    an output projection that shares its weight with the embedding.
    """
    if lora_target == "all":
        pattern = "|".join(f"(?:{part})" for part in targets.values())
    else:
        pattern = targets.get(lora_target, lora_target)
    try:
        names = matching(pattern, model)
    except re.error as error:
        raise ConfigError(f"lora_target = '{lora_target}' is no regular expression: {error}") from error
    modules = dict(model.named_modules())
    if not names:
        raise ConfigError(_nothing_matched(lora_target, targets, modules))
    for name in sorted(names):
        if not isinstance(modules[name], ADAPTABLE):
            raise ConfigError(
                f"lora_target = '{lora_target}' matches {name}, a {type(modules[name]).__name__}, which cannot have an "
                "adapter; match Linear or convolution layers only"
            )
        groups = modules[name].groups if isinstance(modules[name], nn.Conv2d) else 1
        if groups != 1:
            raise ConfigError(
                f"lora_target = '{lora_target}' matches {name}, a convolution in {groups} groups: a LoRA of rank r has "
                f"r channels between, which the groups would have to divide; leave depthwise convolutions out "
                f"(lora_target='vision' does)"
            )
        if _is_tied(modules[name], modules):
            raise ConfigError(
                f"lora_target = '{lora_target}' matches {name}, whose weight is also the token embedding's; "
                "adapting one of the two would untie them: leave it out"
            )
    log_targets(names, targets)
    return pattern


def log_targets(names: Iterable[str], targets: Mapping[str, str]) -> None:
    """Say how many layers of each tower have an adapter."""
    counts = dict.fromkeys([*targets, "other"], 0)
    for name in names:
        tower = next((tower for tower, pattern in targets.items() if re.fullmatch(pattern, name)), "other")
        counts[tower] += 1
    logger.info("adapter in %s", ", ".join(f"{count} {tower} layers" for tower, count in counts.items() if count))


def _is_tied(module: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the module's weight belongs to an embedding too."""
    tables = [other.weight for other in modules.values() if isinstance(other, nn.Embedding)]
    return isinstance(module, nn.Linear) and any(module.weight is table for table in tables)


def _nothing_matched(lora_target: str, targets: Mapping[str, str], modules: Mapping[str, nn.Module]) -> str:
    """The sentence for a target that matches nothing, with one name of each kind of layer as an example."""
    if re.fullmatch(r"\w+", lora_target) and lora_target not in targets:
        known = hint(lora_target, [*targets, "all"])
        return f"lora_target = '{lora_target}' is neither a known target nor the full name of a module{known}"
    kinds = {name.rsplit(".", 1)[-1]: name for name, module in modules.items() if isinstance(module, nn.Linear)}
    examples = ", ".join(sorted(kinds.values())[:6])
    return f"lora_target = '{lora_target}' matches no module; it must match full names such as {examples}"
