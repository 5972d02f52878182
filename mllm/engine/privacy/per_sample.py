"""Per-sample gradients of trainable Linear and LayerNorm layers from one backward pass.

A LoRA of rank r between widths m and n has r (m + n) values per sample, as many as the activations of r tokens. So the
gradients of all samples are stored. They need less memory than the activations and upstream gradients of all tokens
that ghost norms (arXiv:2205.10683) and book-keeping (arXiv:2210.00038) store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mllm.engine.learner import Learner
from mllm.errors import ConfigError

IMAGE_TOWERS = ("vision", "projector")
"""Towers with one row per image instead of one row per sample."""


class PerSampleLinear(nn.Linear):
    """Linear layer that passes per-sample gradients to its tape while the tape records."""

    tape: Tape

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, ..., inputs] to [B, ..., outputs]."""
        if not self.tape.samples:
            return super().forward(input)
        output: Tensor = _Recorded.apply(input, self.weight, self.bias, self)
        return output


class PerSampleLayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension that passes per-sample gradients to its tape while the tape records."""

    tape: Tape

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [B, ..., width]."""
        if not self.tape.samples:
            return super().forward(input)
        normalized = nn.functional.layer_norm(input, self.normalized_shape, eps=self.eps)
        output: Tensor = _Scaled.apply(normalized, self.weight, self.bias, self)
        return output


RECORDING_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PerSampleLinear,
    nn.LayerNorm: PerSampleLayerNorm,
}
"""Supported layer -> its recording subclass."""


class Tape:
    """Recorder of per-sample gradients for all trainable parameters of a module.

    Trainable layers become `PerSampleLinear` or `PerSampleLayerNorm` in place. Names, parameters and hooks stay.

    Args:
        module: The module.
        has_image_rows: Function from the name of a layer to True if its rows are images, of which a sample may have
            several or none. Other layers have one row per sample.

    Raises:
        ConfigError: Another kind of layer is trainable, or the module contains a BatchNorm.
    """

    def __init__(self, module: nn.Module, has_image_rows: Callable[[str], bool] = lambda name: False) -> None:
        self.samples = 0
        """Number of samples of the recorded batch; 0 while the tape does not record."""
        self.images: Sequence[int] | None = None
        """Index of the sample of each image of the batch."""
        self.lengths: Sequence[int] | None = None
        """Number of tokens of each sample, if the samples follow each other in one row; None: they are padded."""
        self.layers = trainable_layers(module)
        self.names: dict[nn.Parameter, str] = {
            parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad
        }
        self._image_layers = {layer for name, layer in self.layers.items() if has_image_rows(name)}
        self._recorded: dict[nn.Parameter, Tensor] = {}
        for layer in self.layers.values():
            # Changing the class keeps references, names and hooks of the module, unlike a wrapper.
            layer.__class__ = RECORDING_CLASSES.get(type(layer), type(layer))
            layer.tape = self  # type: ignore[assignment]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters in the order of the module."""
        return list(self.names)

    @property
    def groups(self) -> list[list[int]]:
        """Return the indices of the parameters of each layer. A shared parameter belongs to the first layer."""
        index = {parameter: number for number, parameter in enumerate(self.names)}
        groups = [[index.pop(item) for item in layer.parameters() if item in index] for layer in self.layers.values()]
        return [group for group in groups if group]

    @contextmanager
    def recording(
        self, samples: int, images: Sequence[int] | None = None, lengths: Sequence[int] | None = None
    ) -> Iterator[dict[nn.Parameter, Tensor]]:
        """Record one forward and backward pass inside the block.

        Args:
            samples: Number of samples of the batch.
            images: Index of the sample of each image.
            lengths: Number of tokens of each sample, if the samples follow each other in one row.

        Yields:
            A dict that the backward pass fills: parameter -> gradients [samples, ...] of the losses of the samples. The
            backward pass must start from the sum of these losses. A parameter without influence on the loss has no
            entry. Attributes `grad` are not set.
        """
        assert samples > 0 and not self.samples
        assert lengths is None or len(lengths) == samples
        self.samples, self.images, self.lengths, self._recorded = samples, images, lengths, {}
        try:
            yield self._recorded
        finally:
            self.samples, self.images, self.lengths, self._recorded = 0, None, None, {}

    def add(self, layer: nn.Module, name: str, gradient: Tensor) -> None:
        """Add the gradients [rows, ...] of one use of a parameter of a layer."""
        parameter = layer.get_parameter(name)
        if layer in self._image_layers:
            assert self.images is not None
            samples = torch.tensor(self.images, device=gradient.device)
            gradient = gradient.new_zeros(self.samples, *gradient.shape[1:]).index_add_(0, samples, gradient)
        earlier = self._recorded.get(parameter)
        self._recorded[parameter] = gradient if earlier is None else earlier + gradient

    def rows(self, layer: nn.Module, tensor: Tensor) -> Sequence[Tensor] | Tensor:
        """Return an input or upstream gradient [B, ..., D] of a layer by sample or image, as [B, T, D].

        Of a row without padding [1, T, D], it is a list of the tokens [T, D] of each sample.
        """
        if self.lengths is None or layer in self._image_layers:
            return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])
        return tensor[0].split(list(self.lengths))

    def check(self, layer: nn.Module, shape: Sequence[int]) -> None:
        """Raise `ConfigError` unless an input of this shape has one row per sample or, in image towers, per image.

        Samples without padding are one row that has all of their tokens.
        """
        is_image_layer = layer in self._image_layers
        if self.lengths is not None and not is_image_layer:
            actual, expected = f"inputs of shape {tuple(shape)}", f"{sum(self.lengths)} tokens in one row"
            is_right = len(shape) == 3 and shape[0] == 1 and shape[1] == sum(self.lengths)
        else:
            number = len(self.images or ()) if is_image_layer else self.samples
            actual, expected = f"{shape[0]} rows", f"{number} {'images' if is_image_layer else 'samples'}"
            is_right = shape[0] == number
        if not is_right:
            name = next(name for name, item in self.layers.items() if item is layer)
            raise ConfigError(
                f"privacy_args: the layer {name} has {actual} for {expected}, so the gradients of samples cannot be "
                "separated; remove it from model_args.lora_target"
            )


def images_in(learner: Learner) -> Callable[[str], bool]:
    """Return a function from the name of a layer of the learner to True if its rows are images."""
    return lambda name: learner.student.tower_of(name.removeprefix("student.")) in IMAGE_TOWERS


def trainable_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with trainable parameters by name. Raise `ConfigError` for an unsupported layer."""
    layers = {}
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            raise ConfigError(
                f"privacy_args: {name} is a BatchNorm, which mixes the samples of a batch, so per-sample gradients "
                "cannot be bounded; use a model without BatchNorm"
            )
        is_trained = any(parameter.requires_grad for parameter in part.parameters(recurse=False))
        if is_trained and type(part) not in (*RECORDING_CLASSES, *RECORDING_CLASSES.values()):
            raise ConfigError(
                f"privacy_args: {name or type(part).__name__} ({type(part).__name__}) is trainable, and only Linear "
                "layers (LoRA on Linear layers, linear heads) and LayerNorms of heads have per-sample gradients: "
                "remove it from model_args.lora_target or trainable"
            )
        if is_trained:
            layers[name] = part
    if not layers:
        raise ConfigError("the model has no trainable tensor: set model_args.lora_r, adapter_path or trainable")
    return layers


class _Recorded(torch.autograd.Function):
    """Linear function whose backward pass adds per-sample gradients of weight and bias to the tape.

    It uses `save_for_backward`, so it works with non-reentrant checkpointing.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, layer: PerSampleLinear) -> Tensor:
        layer.tape.check(layer, input.shape)
        ctx.layer, ctx.dtype = layer, input.dtype
        device = input.device.type
        input = input.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else input
        ctx.save_for_backward(input, weight)
        return nn.functional.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        layer: PerSampleLinear = ctx.layer
        to_input = (upstream @ weight.to(upstream.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        upstream_BTO = layer.tape.rows(layer, upstream)
        if "weight" in (trained := _trained(layer)):
            input_BTI = layer.tape.rows(layer, input.to(upstream.dtype))
            layer.tape.add(layer, "weight", _products(upstream_BTO, input_BTI).to(weight.dtype))
        if "bias" in trained:
            layer.tape.add(layer, "bias", _sums(upstream_BTO).to(layer.bias.dtype))
        return to_input, None, None, None


class _Scaled(torch.autograd.Function):
    """Scale and shift of a LayerNorm whose backward pass adds per-sample gradients to the tape."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, layer: PerSampleLayerNorm) -> Tensor:
        assert input.shape[-1:] == weight.shape, "a LayerNorm over more than the last dimension"
        layer.tape.check(layer, input.shape)
        ctx.layer = layer
        ctx.save_for_backward(input, weight)
        scaled = input * weight
        return scaled if bias is None else scaled + bias

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        layer: PerSampleLayerNorm = ctx.layer
        if "weight" in (trained := _trained(layer)):
            layer.tape.add(layer, "weight", _sums(layer.tape.rows(layer, upstream * input)).to(weight.dtype))
        if "bias" in trained:
            layer.tape.add(layer, "bias", _sums(layer.tape.rows(layer, upstream)).to(layer.bias.dtype))
        return upstream * weight if ctx.needs_input_grad[0] else None, None, None, None


def _products(upstream_BTO: Sequence[Tensor] | Tensor, input_BTI: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the sum over the tokens of each sample of the outer products of both, [B, O, I]."""
    if isinstance(upstream_BTO, Tensor) and isinstance(input_BTI, Tensor):
        return torch.bmm(upstream_BTO.transpose(1, 2), input_BTI)
    return torch.stack([upstream.T @ input for upstream, input in zip(upstream_BTO, input_BTI, strict=True)])


def _sums(values_BTD: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the sum over the tokens of each sample, [B, D]."""
    if isinstance(values_BTD, Tensor):
        return values_BTD.sum(dim=1)
    return torch.stack([values.sum(dim=0) for values in values_BTD])


def _trained(layer: nn.Module) -> set[str]:
    """Return the names of the trainable parameters of a layer, without submodules."""
    return {name for name, parameter in layer.named_parameters(recurse=False) if parameter.requires_grad}


def stacked(gradients: dict[nn.Parameter, Tensor], parameters: Sequence[nn.Parameter], rows: int) -> list[Tensor]:
    """Return the recorded gradients [B, numel] in the order of `parameters`; zeros for those without an entry."""
    return [
        gradients[parameter].flatten(1) if parameter in gradients else parameter.new_zeros(rows, parameter.numel())
        for parameter in parameters
    ]
