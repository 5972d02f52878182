"""Kernels of Liger for the norms, the positions and the feed-forward layers of a language model.

Its kernels for losses are never used, because the objectives compute the losses. Liger replaces functions and classes
of transformers for all models of the process, so what it replaces is restored, and its kernels compute tensors on the
GPU of the training only: an export computes the same model on the CPU.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mllm.errors import ConfigError, one_line

KERNELS = frozenset({"rms_norm", "rope", "swiglu", "geglu"})
"""Arguments of Liger's functions that turn kernels on, if on is their default. All others are turned off."""
ROPE = "apply_rotary_pos_emb"
"""Function of a module of transformers that rotates queries and keys."""


def use_liger_kernels(model: PreTrainedModel, device: str = "cuda") -> list[str]:
    """Let kernels of Liger compute the language model of `model` on a kind of device. Return the names of the kernels.

    Raises:
        ConfigError: Liger has no kernels for this architecture, or its version does not fit that of transformers.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    language: Any = model.get_decoder()
    architecture, version = language.config.model_type, metadata.version("liger-kernel")
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(architecture)
    if apply is None:
        raise ConfigError(
            f"training_args.use_liger_kernel=True is not possible with '{architecture}' models, for which liger-kernel "
            f"{version} has no kernels: remove it"
        )
    # A kernel that Liger does not have for an architecture is off by default, and turning it on can raise an error.
    switches = {
        name: name in KERNELS and parameter.default
        for name, parameter in inspect.signature(apply).parameters.items()
        if isinstance(parameter.default, bool)
    }
    module = sys.modules[type(language).__module__]
    before = dict(vars(module))
    plain = {part: dict(vars(part)) for part in language.modules()}
    try:
        apply(model=language, **switches)
    except (TypeError, AttributeError, ImportError, NotImplementedError) as error:
        raise ConfigError(
            f"training_args.use_liger_kernel=True: liger-kernel {version} does not fit this model of transformers "
            f"{metadata.version('transformers')} ({one_line(str(error))[:200]}): remove it"
        ) from error
    finally:
        rope = vars(module).get(ROPE)  # None for models that rotate by another function, whose kernel is not used
        vars(module).update(before)
    if rope is None or rope is before[ROPE]:
        switches["rope"] = False
    else:
        vars(module)[ROPE] = _on(device, rope, before[ROPE])
    for part, attributes in plain.items():
        _keep_plain_forward(part, attributes, device)
    return sorted(name for name, is_on in switches.items() if is_on)


def _keep_plain_forward(part: nn.Module, attributes: dict[str, Any], device: str) -> None:
    """Let a module that Liger replaced compute as before on other devices, and keep its name."""
    if "forward" in vars(part) and "forward" not in attributes:
        plain = type(part).forward.__get__(part)
        part.forward = _on(device, vars(part)["forward"], plain)
        for name in ("_get_name", "extra_repr"):
            vars(part).pop(name, None)


def _on(device: str, kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes tensors on a kind of device by a kernel, and others as before."""

    def chosen(first: Tensor, *arguments: Any, **options: Any) -> Any:
        function = kernel if first.device.type == device else plain
        return function(first, *arguments, **options)

    return chosen
