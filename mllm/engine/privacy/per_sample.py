"""The gradient of every sample of a batch, from one backward, for the Linear layers and LayerNorms that train.

A LoRA of rank r between widths m and n has r (m + n) numbers a sample, as many as the activations of r tokens. So the
gradients themselves are kept, sample by sample: that takes less memory than the activations and upstream gradients of
all tokens, from which ghost norms (arXiv:2205.10683) and book-keeping (arXiv:2210.00038) would make them later.
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

BY_IMAGE = ("vision", "projector")
"""The towers whose rows are images."""


class PerSampleLinear(nn.Linear):
    """A Linear layer that, while its tape records, gives the gradient of every sample in the place of their sum."""

    tape: Tape

    def forward(self, input: Tensor) -> Tensor:
        """input [B, ..., inputs] to [B, ..., outputs]."""
        if not self.tape.samples:
            return super().forward(input)
        output: Tensor = _Recorded.apply(input, self.weight, self.bias, self)
        return output


class PerSampleLayerNorm(nn.LayerNorm):
    """A LayerNorm over the last dimension that does the same."""

    tape: Tape

    def forward(self, input: Tensor) -> Tensor:
        """input [B, ..., width] to the same shape."""
        if not self.tape.samples:
            return super().forward(input)
        normalized = nn.functional.layer_norm(input, self.normalized_shape, eps=self.eps)
        output: Tensor = _Scaled.apply(normalized, self.weight, self.bias, self)
        return output


KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: PerSampleLinear, nn.LayerNorm: PerSampleLayerNorm}
"""Layers whose gradients are known by sample, and what they become."""


class Tape:
    """Records the gradient of each sample for every trainable parameter below `module`.

    Its trainable layers become `PerSampleLinear` or `PerSampleLayerNorm`, in place: names, parameters, hooks and base
    class stay. `sees_images` tells of a layer's name whether its rows are images, of which a sample may have several or
    none; other layers have a row for each sample. Raises `ConfigError` where something else trains, or where samples
    are normalized together.
    """

    def __init__(self, module: nn.Module, sees_images: Callable[[str], bool] = lambda name: False) -> None:
        self.samples = 0
        """Samples of the batch that is recorded; 0 while nothing is."""
        self.images: Sequence[int] | None = None
        """Whose each of its images is, by the sample's place in the batch."""
        self.layers = trainable_layers(module)
        self.names: dict[nn.Parameter, str] = {
            parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad
        }
        self._see_images = {layer for name, layer in self.layers.items() if sees_images(name)}
        self._recorded: dict[nn.Parameter, Tensor] = {}
        for layer in self.layers.values():
            # As in half_safe.py: a new class on the living module keeps all that refers to it, unlike a wrapper.
            layer.__class__ = KINDS.get(type(layer), type(layer))
            layer.tape = self  # type: ignore[assignment]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What trains, in the order of the module."""
        return list(self.names)

    @property
    def groups(self) -> list[list[int]]:
        """For each layer, the places of its parameters in `parameters`; a shared one belongs to the first."""
        place = {parameter: number for number, parameter in enumerate(self.names)}
        groups = [[place.pop(own) for own in layer.parameters() if own in place] for layer in self.layers.values()]
        return [group for group in groups if group]

    @contextmanager
    def recording(self, samples: int, images: Sequence[int] | None = None) -> Iterator[dict[nn.Parameter, Tensor]]:
        """Records a forward and its backward, both inside the block, of a batch of `samples`.

        `images` says whose each image of the batch is. Gives a dict that the backward fills: parameter ->
        [samples, ...], the gradient of each sample's loss where what is differentiated is the sum of the samples'
        losses. Parameters get no `grad`. A parameter that had no part in the loss has no entry.
        """
        assert samples > 0 and not self.samples
        self.samples, self.images, self._recorded = samples, images, {}
        try:
            yield self._recorded
        finally:
            self.samples, self.images, self._recorded = 0, None, {}

    def add(self, layer: nn.Module, own: str, gradient: Tensor) -> None:
        """Adds gradients [rows, ...] from one use of a layer's parameter `own`; it may be used several times."""
        parameter = layer.get_parameter(own)
        if layer in self._see_images:
            assert self.images is not None
            owners = torch.tensor(self.images, device=gradient.device)
            gradient = gradient.new_zeros(self.samples, *gradient.shape[1:]).index_add_(0, owners, gradient)
        known = self._recorded.get(parameter)
        self._recorded[parameter] = gradient if known is None else known + gradient

    def check(self, layer: nn.Module, rows: int) -> None:
        """Refuses a layer whose input does not keep samples, or images, apart in its first dimension."""
        by_image = layer in self._see_images
        expected = len(self.images or ()) if by_image else self.samples
        if rows != expected:
            name = next(name for name, own in self.layers.items() if own is layer)
            raise ConfigError(
                f"privacy_args: the layer {name} sees {rows} rows for {expected} {'images' if by_image else 'samples'},"
                " so the gradient of one sample cannot be told from another's; leave it out of model_args.lora_target"
            )


def images_in(learner: Learner) -> Callable[[str], bool]:
    """Tells of the name of a learner's layer whether its rows are images."""
    return lambda name: learner.student.tower_of(name.removeprefix("student.")) in BY_IMAGE


def trainable_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers with trainable parameters, by name; raises `ConfigError` where one is no Linear or LayerNorm."""
    layers, found = {}, 0
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            raise ConfigError(
                f"privacy_args: {name} is a BatchNorm, which mixes the samples of a batch, so no sample's share can be "
                "bounded; use a model without"
            )
        own = [parameter for parameter in part.parameters(recurse=False) if parameter.requires_grad]
        if own and type(part) not in (*KINDS, *KINDS.values()):
            raise ConfigError(
                f"privacy_args: {name or type(part).__name__} ({type(part).__name__}) trains, and only Linear layers "
                "(LoRA on Linear layers, linear heads) and LayerNorms of heads have gradients by sample; leave it out "
                "of model_args.lora_target"
            )
        if own:
            layers[name] = part
            found += len(own)
    if not found:
        raise ConfigError("nothing is trainable: set model_args.lora_r, or name an adapter to continue")
    return layers


class _Recorded(torch.autograd.Function):
    """A Linear layer whose backward gives the parameters' gradients to the layer's tape, sample by sample.

    It saves by autograd's own means, so checkpointing without re-entrance frees and computes it again like any other.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, layer: PerSampleLinear) -> Tensor:
        layer.tape.check(layer, input.shape[0])
        ctx.layer, ctx.dtype = layer, input.dtype
        device = input.device.type
        kept = input.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else input
        ctx.save_for_backward(kept, weight)
        return nn.functional.linear(kept, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        layer: PerSampleLinear = ctx.layer
        to_input = (upstream @ weight.to(upstream.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        rows = upstream.shape[0]
        upstream_BTO = upstream.reshape(rows, -1, upstream.shape[-1])
        if "weight" in (trained := _trained(layer)):
            kept_BTI = kept.reshape(rows, -1, kept.shape[-1]).to(upstream.dtype)
            layer.tape.add(layer, "weight", torch.bmm(upstream_BTO.transpose(1, 2), kept_BTI).to(weight.dtype))
        if "bias" in trained:
            layer.tape.add(layer, "bias", upstream_BTO.sum(dim=1).to(layer.bias.dtype))
        return to_input, None, None, None


class _Scaled(torch.autograd.Function):
    """The scale and shift behind a normalization; its backward does the same for them."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, layer: PerSampleLayerNorm) -> Tensor:
        assert input.shape[-1:] == weight.shape, "a LayerNorm over more than the last dimension"
        layer.tape.check(layer, input.shape[0])
        ctx.layer = layer
        ctx.save_for_backward(input, weight)
        scaled = input * weight
        return scaled if bias is None else scaled + bias

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        layer: PerSampleLayerNorm = ctx.layer
        shape_BTI = (upstream.shape[0], -1, upstream.shape[-1])
        if "weight" in (trained := _trained(layer)):
            layer.tape.add(layer, "weight", (upstream * input).reshape(shape_BTI).sum(dim=1).to(weight.dtype))
        if "bias" in trained:
            layer.tape.add(layer, "bias", upstream.reshape(shape_BTI).sum(dim=1).to(layer.bias.dtype))
        return upstream * weight if ctx.needs_input_grad[0] else None, None, None, None


def _trained(layer: nn.Module) -> set[str]:
    """The names of a layer's own parameters that train."""
    return {name for name, parameter in layer.named_parameters(recurse=False) if parameter.requires_grad}


def stacked(gradients: dict[nn.Parameter, Tensor], parameters: Sequence[nn.Parameter], rows: int) -> list[Tensor]:
    """The recorded gradients [B, numbers] in the order of `parameters`; zeros where one had no part in the loss."""
    return [
        gradients[parameter].flatten(1) if parameter in gradients else parameter.new_zeros(rows, parameter.numel())
        for parameter in parameters
    ]
