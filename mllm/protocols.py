"""Protocols of encoders, models and collators, through which the packages call each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mllm.structures import Answer, Batch, Encoded, Failure, LogicalBatch, Sample

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel
    from typing_extensions import Self


class Collator(Protocol):
    """Function that divides the samples of an update into pieces."""

    tokens_per_piece: int | None
    """Maximum number of tokens of a piece; None: another limit applies."""

    def __call__(self, items: Sequence[Encoded | Failure], /) -> LogicalBatch:
        """Return the batch of an update, including its failures."""
        ...


class Processor(Protocol):
    """Processor, tokenizer or image processor of transformers that an encoder calls."""

    def save_pretrained(self, folder: str | Path, /) -> object:
        """Write the files of the processor to a folder."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings of the processor."""


class SampleEncoder(Protocol):
    """Conversion of samples to batches, as the data loader calls it."""

    def encode(self, sample: Sample) -> Encoded:
        """Encode a sample with its targets. Raise `DataError` if the sample cannot be used."""

    def pad(self, samples: Sequence[Encoded], side: str = "right") -> Batch:
        """Return a batch: tensors [L] padded on `side` and stacked to [B, L], image tensors concatenated."""


class Encoder(SampleEncoder, Protocol):
    """Conversion of samples to the model's inputs, and of reference answers to the form of its predictions."""

    tokenizer: Any
    """Tokenizer of transformers. None: the model reads images only."""
    views: tuple[str, ...]
    """Names of the views that the model reads, in order. Empty for a model that generates text."""
    measures: tuple[str, ...]
    """Names of the K measures that the model predicts. Empty for a model that generates text."""

    @property
    def processor(self) -> Processor:
        """Return the processor of transformers."""

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """Return the token ids that stand for images."""

    def prompt(self, sample: Sample) -> Encoded:
        """Encode a sample up to the answer, without targets. Raise `DataError` if the sample cannot be used."""

    def reference(self, sample: Sample) -> Answer:
        """Return the reference answer of a sample."""

    def synthetic(self, count: int) -> list[Sample]:
        """Return `count` artificial samples of the largest size, for checks that must not read private data."""


class _Module(Protocol):
    """The members of `torch.nn.Module` that are used through `Model`."""

    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, device: torch.device | str, /) -> Self: ...


class Model(_Module, Protocol):
    """A backbone of transformers with an adapter and heads.

    Call it with `Batch.student` as keyword arguments. It returns `Outputs`.
    """

    backbone: nn.Module
    """Model of transformers, or the `peft.PeftModel` around it."""
    towers: dict[str, str]
    """Prefix of the parameter names of each part, such as `{"vision": "model.vision_tower"}`."""
    heads: nn.ModuleDict
    generates_text: bool
    """False: the model predicts measures (part='vision')."""
    tapped: dict[str, int]
    """Width of each tapped layer by module path, and the side of their `grid`. Empty without taps."""

    @property
    def pretrained(self) -> PreTrainedModel:
        """Return the model of transformers, with injected adapter layers."""

    def enable_checkpointing(self, options: dict[str, Any], **layers: Any) -> None:
        """Turn gradient checkpointing on."""

    def trains(self, tower: str) -> bool:
        """Return True if any parameter of a tower is trainable."""

    def tower_of(self, parameter: str) -> str:
        """Return the tower of a parameter, given its name."""

    def trained_state(self) -> dict[str, Tensor]:
        """Return all trained tensors that are not part of an adapter."""

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Copy the tensors of `trained_state` of an equal model. Raise `ConfigError` if they do not fit."""

    def computing(self) -> AbstractContextManager[Any]:
        """Return a context for forward passes outside of the trainer, which turns autocast on itself."""

    def freeze_as_teacher(self) -> None:
        """Freeze all parameters and make the features of an image independent of the other images of its batch."""

    def fit_measures(self, known: Mapping[str, Sequence[float]]) -> None:
        """Scale the measure head by the known values of the training split. Does nothing without such a head."""

    def own_logits(self, student: dict[str, Tensor], sample: int, positions: Tensor) -> Tensor:
        """Return the logits [P, vocabulary] of one sample at P positions, as transformers computes them."""

    def tap(self, layers: Sequence[int | str] | None, count: int, grid: int) -> list[tuple[str, int]]:
        """Return the path and the width of each tapped layer. Their outputs are in `Outputs.taps` from now on.

        `layers` are indices or module paths. None: `count` layers, evenly spaced.
        """


@dataclass(frozen=True)
class Bundle:
    """A loaded model and its encoder."""

    model: Model
    encoder: Encoder
