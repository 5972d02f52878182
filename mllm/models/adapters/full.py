"""Training of weights in full: the parameters of a tower or of its last layers, stored in fp32."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.adapters.names import adapter_parameter_names
from mllm.models.adapters.read_layers import is_read
from mllm.models.adapters.targets import tower_of
from mllm.models.backbone.streamed import StoredWeight, Unstreamable

logger = logging.getLogger(__name__)


def train_in_full(model: PreTrainedModel, towers: Mapping[str, str], full: Mapping[str, int | None]) -> None:
    """Make the weights of towers trainable and store them in fp32. Tied weights stay tied.

    `towers` are prefixes of module names. `full` maps 'language', 'vision' or 'projector' to the number of the last
    layers that train; None: the whole tower. Weights that no output depends on, such as the vision layers after the one
    that a projector reads, stay frozen.

    Raises:
        ConfigError: The model lacks a tower or has fewer layers, or weights of it are quantized or have a BatchNorm.
    """
    for tower, count in full.items():
        prefixes = [towers[name] for name in names_of(tower) if name in towers]
        if not prefixes:
            raise ConfigError(absent_tower(tower, model))
        parameters = whole_tower(model, towers, tower)
        if count is not None:
            last = {id(item) for prefix in prefixes for item in last_layers(model, tower, prefix, count).parameters()}
            parameters = {name: item for name, item in parameters.items() if id(item) in last}
        _refuse_untrainable(model, tower, parameters)
        for parameter in parameters.values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        if tower == "projector":
            convert_inputs(model.get_submodule(prefixes[0]))
        logger.info("%s trains in full: %d tensors", _title(tower, count), len(parameters))


def absent_tower(tower: str, model: PreTrainedModel) -> str:
    """Return the message about a part that a model does not have."""
    return f"model_args.trainable names the part '{tower}', and a {type(model).__name__} has none: remove it"


def names_of(tower: str) -> tuple[str, ...]:
    """Return the names in a family's towers that a name in `trainable` covers."""
    return ("encoder", "language") if tower == "language" else (tower,)


def whole_tower(model: PreTrainedModel, towers: Mapping[str, str], tower: str) -> dict[str, nn.Parameter]:
    """Return the parameters of a tower that its output depends on, by name, without tables of fixed values.

    The token embedding and the output projection belong to 'language', wherever they are in the model, and the row
    that a LLaVA puts at the end of a line of an image belongs to 'projector'.
    """
    tables = {id(table) for table in token_tables(model)} if tower == "language" else set()
    chosen = {}
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        is_inside = tower_of(name, towers) in names_of(tower) and (tower == "language" or is_read(model, name))
        is_inside |= tower == "projector" and own == "image_newline"
        is_fixed = "Sinusoidal" in type(model.get_submodule(owner)).__name__
        if id(parameter) in tables or (is_inside and not is_fixed):
            chosen[name] = parameter
    return chosen


def token_tables(model: PreTrainedModel) -> list[Tensor]:
    """Return the weights of the token embedding and of the output projection; a tied weight is in it twice."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [parameter for layer in layers if isinstance(layer, nn.Module) for parameter in layer.parameters()]


def last_layers(model: PreTrainedModel, tower: str, prefix: str, count: int) -> nn.ModuleList:
    """Return the last `count` layers of a tower whose outputs are read. Raise `ConfigError` if it has fewer."""
    name, layers = sequence_of_layers(model.get_submodule(prefix))
    path = f"{prefix}.{name}" if prefix else name
    numbers = [i for i in range(len(layers)) if tower == "language" or is_read(model, f"{path}.{i}.weight")]
    read = [layers[i] for i in numbers]
    if count > len(read):
        raise ConfigError(
            f"model_args.trainable: last_layers={count}, but {path} has {len(read)} layers: set a smaller number, or "
            "'full'"
        )
    return nn.ModuleList(read[-count:])


def sequence_of_layers(tower: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return the name and the modules of the sequence of layers with most parameters among the outermost ones."""
    outermost: dict[str, nn.Module] = {}
    for name, module in tower.named_modules():
        is_inside = any(name.startswith(f"{other}.") for other in outermost)
        if isinstance(module, nn.ModuleList | nn.Sequential) and name and not is_inside:
            outermost[name] = module
    if not outermost:
        raise ConfigError(f"model_args.trainable: a {type(tower).__name__} has no sequence of layers: use 'full'")
    name = max(outermost, key=lambda key: sum(item.numel() for item in outermost[key].parameters()))
    return name, list(outermost[name].children())


def convert_inputs(module: nn.Module) -> None:
    """Convert the floating-point inputs of a module to fp32 in every forward pass."""

    def convert(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(map(_in_fp32, arguments)), {name: _in_fp32(value) for name, value in options.items()}

    module.register_forward_pre_hook(convert, with_kwargs=True)


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _refuse_untrainable(model: PreTrainedModel, tower: str, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise `ConfigError` for quantized and adapted weights, and for statistics that no checkpoint of a run stores.

    Raise `Unstreamable` for weights that stay in the files of the checkpoint.
    """
    if adapted := sorted(adapter_parameter_names(model) & parameters.keys()):
        raise ConfigError(
            f"model_args.lora_target puts a LoRA into the part '{tower}' ({adapted[0]}), which trains in full: set "
            "lora_target to other layers, or remove it"
        )
    for name, parameter in parameters.items():
        if isinstance(parameter, StoredWeight):
            raise Unstreamable(f"weights of the part '{tower}' were trained in full")
        if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
            stored = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(
                f"{name} is stored as {stored}, and quantized weights cannot train in full: load the model without "
                "quantization, or train a LoRA"
            )
    for module in _owners(model, parameters):
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"{type(model).__name__} has a BatchNorm among the weights that would train in full, and its running "
                "statistics are not part of a checkpoint: train a LoRA instead"
            )


def _owners(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterable[nn.Module]:
    """Return the modules that own the parameters."""
    return [model.get_submodule(name) for name in {name.rpartition(".")[0] for name in parameters}]


def _title(tower: str, count: int | None) -> str:
    return tower if count is None else f"{tower}, its last {count} layers,"


def autocast_dtype(full: Mapping[str, int | None], precision: str) -> torch.dtype | None:
    """Return the dtype in which a model computes whose fp32 weights lie between weights in bf16; None: their own.

    A projector converts its inputs, and a whole language model is loaded in fp32 together with the rest.
    """
    is_mixed = any(tower != "projector" for tower in full) and full.get("language", 0) is not None
    return torch.bfloat16 if precision == "bf16" and is_mixed else None
