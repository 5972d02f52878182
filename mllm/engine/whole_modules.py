"""Restoration of a module whose parameters an engine has divided among processes: ZeRO-3 or FSDP2.

Both engines replace parameters and add hooks in place. After the training the module is restored to its plain form with
gathered weights, so that exports and evaluations need no case for an engine.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mllm.errors import TrainingError

MARKS = ("_fsdp_", "_is_fsdp_", "ds_", "_ds_", "_external_params", "__composable_api")
"""Beginnings of the names of attributes by which the engines mark a module."""


class PlainForm:
    """Classes, hooks and places of the parameters of all modules in `root`, recorded before an engine changes them."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._modules = [
            (module, module.__class__, _hooks(module), "forward" in vars(module), list(module._parameters))
            for module in root.modules()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Give all modules their former form, with the gathered weights. All processes must call it.

        Raises:
            TrainingError: A gathered trained tensor differs from the part that this or another process trained.
        """
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # after an evaluation the root group has its weights in the dtype of the computation
        whole: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # the former ones, too, so that their ids stay unique
        faults: list[str] = []
        names = {id(parameter): name for name, parameter in self._root.named_parameters()}
        for module, kind, hooks, has_forward, slots in self._modules:
            parameters: dict[str, nn.Parameter | None] = {}
            for slot in slots:
                parameter = parameters[slot] = module._parameters[slot]
                if parameter is None:
                    continue
                if id(parameter) not in whole:
                    full, is_equal = gathered(parameter)
                    if parameter.requires_grad and not is_equal:
                        faults.append(names[id(parameter)])
                    whole[id(parameter)] = parameter, nn.Parameter(full, requires_grad=parameter.requires_grad)
                parameters[slot] = whole[id(parameter)][1]
            vars(module)["_parameters"] = parameters  # a plain dict, as in a new module
            module.__class__ = kind
            vars(module).update({name: dict_of.copy() for name, dict_of in hooks.items()})
            for name in [name for name in vars(module) if name.startswith(MARKS)]:
                del vars(module)[name]
            if not has_forward:
                vars(module).pop("forward", None)
        if faults := gather_object(faults):
            raise TrainingError(
                f"the gathered tensor {faults[0]} differs from the parts that the processes trained, so nothing is "
                "exported: continue from the last checkpoint with --resume"
            )


def gathered(parameter: nn.Parameter) -> tuple[Tensor, bool]:
    """Return a parameter as a whole tensor, and True if it contains the part of this process bit by bit."""
    divided: Any = parameter
    if isinstance(parameter, DTensor):
        full = parameter.full_tensor()
        shape, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
        own = full[tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))]
        return full.detach().clone(), torch.equal(own, parameter.to_local())
    if "ds_tensor" in vars(parameter):
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        with GatheredParameters([parameter]):
            full = parameter.data.clone()
        own = divided.ds_tensor.data.flatten()
        start = torch.distributed.get_rank() * own.numel()
        part = full.flatten()[start : start + own.numel()]
        return full, torch.equal(part, own[: part.numel()].to(part.device))
    return parameter.detach(), True


def _hooks(module: nn.Module) -> dict[str, dict[Any, Any]]:
    """Return copies of the tables of hooks of a module, by the names of its attributes."""
    return {name: value.copy() for name, value in vars(module).items() if "hooks" in name and isinstance(value, dict)}
