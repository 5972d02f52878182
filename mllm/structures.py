"""The nouns that cross the borders between the parts, with their shapes.

Suffixes in tensor code: B samples, V views (images of one sample), N tokens of one image, L text tokens, D width,
M marks (boxes or masks) of one sample, K measures, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor, nn

Role = Literal["system", "user", "assistant"]
IMAGE = "<image>"
"""The placeholder that a turn's text holds where an image stands."""
BOX = "<box>"
"""The placeholder that a turn's text holds where one or several boxes or masks are named."""
POINT = "<point>"
"""The same for points."""
UNITS = {"EF": "%", "EDV": "mL", "ESV": "mL"}
"""The units of measures by their names: ejection fraction, end-diastolic and end-systolic volume."""
IGNORE = -100
"""The label of a token that is not supervised (PyTorch's `ignore_index`)."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; its text may hold `<image>`, `<box>` and `<point>` placeholders."""

    role: Role
    text: str
    marks: tuple[tuple[int, ...], ...] = ()
    """For each `<box>` and `<point>` of the text, in order: which of the sample's marks it stands for, none perhaps.

    Where it is empty, `<box>` and `<point>` are plain text.
    """


@dataclass(frozen=True)
class Mark:
    """A place in an image: a box, a mask, or both; or a point."""

    box: tuple[float, float, float, float] | None = None
    """x1 y1 x2 y2 in pixels of the image; pixel (0, 0) reaches from 0 to 1 on both axes."""
    mask: np.ndarray | None = None
    """[H, W] bool."""
    point: tuple[float, float] | None = None
    """x y in pixels of the image."""
    image: int = 0
    """Which of the sample's images it lies in, from 0."""


@dataclass(frozen=True)
class Frame:
    """How an image lies in what the model sees of it: alone, or in the middle of a square."""

    width: int
    """Pixels of the image."""
    height: int
    left: int = 0
    """Pixels added before the first column."""
    top: int = 0
    """Pixels added above the first row."""
    full_width: int = 0
    """Pixels of what the model sees; 0: those of the image."""
    full_height: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of what the model sees."""
        return self.full_width or self.width, self.full_height or self.height

    def relative(self, *coordinates: float) -> tuple[float, ...]:
        """x y (x y ...) in pixels of the image as shares of what the model sees, in [0, 1] inside of it."""
        offsets, lengths = (self.left, self.top), self.size
        return tuple((value + offsets[i % 2]) / lengths[i % 2] for i, value in enumerate(coordinates))

    def pixels(self, *coordinates: float) -> tuple[float, ...]:
        """The way back from `relative`."""
        offsets, lengths = (self.left, self.top), self.size
        return tuple(value * lengths[i % 2] - offsets[i % 2] for i, value in enumerate(coordinates))


@dataclass(frozen=True)
class Sample:
    """One example as a dataset gives it: a conversation about images."""

    turns: list[Turn]
    images: list[Image] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    """The name of each image ('ED', 'ES'); order is never trusted, names are."""
    marks: list[Mark] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    """Numbers to regress, in their own units; NaN where unknown."""
    group: str | None = None
    """Who it belongs to (a patient): groups are never divided between splits."""
    source: str = ""
    """Where it comes from, for messages: `FILE, line 3`."""


@dataclass(frozen=True)
class Answer:
    """What was said about a sample, or what should have been said."""

    text: str
    marks: tuple[Mark, ...] = ()
    """The boxes, masks and points that it names, in pixels of the original images."""
    unreadable: int = 0
    """Places in the text that begin like a box or a point and cannot be read as one."""
    tokens: int = 0
    """Generated tokens, the end of the turn included; 0 for a reference."""
    measures: dict[str, float] = field(default_factory=dict)
    """Numbers in their own units; NaN where unknown."""
    group: str | None = None
    """Who a reference belongs to (a patient)."""


@dataclass(frozen=True)
class Encoded:
    """One sample as the model's processor sees it, not yet padded."""

    student: dict[str, Tensor]
    """The backbone's keyword arguments; those aligned with the text have shape [L], the others begin with images."""
    targets: dict[str, Tensor]
    """What the objectives are told; `labels` [L] holds token ids, `IGNORE` where nothing is supervised."""
    source: str = ""
    truncated: bool = False
    """Whether the end of its last answer was cut off at `max_length`."""
    frames: tuple[Frame, ...] = ()
    """One for each image of the sample."""
    teacher: Encoded | None = None
    """The same sample as a teacher sees it, where a run distils."""
    length: int | None = None
    """The number of tokens, those of the images included; None: that of the labels."""
    unit: int | None = None
    """Whose contribution it is, where privacy is promised to units of several samples."""

    def __len__(self) -> int:
        return int(self.targets["labels"].shape[0]) if self.length is None else self.length

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence that is padded by itself: all of them, or those of the source and of the target."""
        source = (len(self.student["input_ids"]),) if "decoder_input_ids" in self.student else ()
        return (*source, len(self))


@dataclass(frozen=True)
class Failure:
    """A row that could not be used, carried from a loader's worker as the sentence that a user reads."""

    sentence: str


@dataclass(frozen=True)
class Batch:
    """Samples that run through the model in one forward."""

    student: dict[str, Tensor]
    targets: dict[str, Tensor]
    teacher: dict[str, Tensor] | None = None
    """The same samples through the teacher's processor, where a run distils."""
    units: tuple[int, ...] | None = None
    """Whose contribution each sample is, equal ones side by side, where units have several samples."""
    images: tuple[int, ...] = ()
    """Whose each image is, by the sample's place in the batch."""

    @property
    def samples(self) -> int:
        """How many samples run."""
        return len(next(iter(self.targets.values())))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `function` applied to every tensor."""

        def apply(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: function(tensor) for name, tensor in tensors.items()}

        return replace(
            self,
            student=apply(self.student),
            targets=apply(self.targets),
            teacher=None if self.teacher is None else apply(self.teacher),
        )

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, as `torch.utils.data.DataLoader` asks for it."""
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class LogicalBatch:
    """The samples of one update, cut into pieces that fit in memory; how it is cut never changes the update."""

    pieces: list[Batch]
    samples: int
    """How many samples it holds, those that were skipped left out."""
    tokens: int
    """Tokens without padding."""
    padded_tokens: int
    """Tokens with padding, as the backbone sees them."""
    truncated: int = 0
    """How many samples were cut at `max_length`."""
    failures: tuple[Failure, ...] = ()
    """The rows that could not be used."""

    def pin_memory(self) -> LogicalBatch:
        """The same batch in page-locked memory."""
        return replace(self, pieces=[piece.pin_memory() for piece in self.pieces])


@dataclass(frozen=True)
class Outputs:
    """What a model gives for a batch."""

    hidden_BLD: Tensor
    """Of a model that reads images alone, the mean features of each view: L is V there."""
    vocabulary: nn.Module | None = None
    """The projection from D to the vocabulary: a module, never a [B, L, vocabulary] tensor; None: it does not speak."""
    softcap: float | None = None
    """Logits are `softcap * tanh(logits / softcap)` where the checkpoint says so (Gemma 2, Gemma 3n)."""
    rows: tuple[Tensor, Tensor] | None = None
    """Words of the vocabulary with weights of their own, which train: their ids [R] and weights [R, D]."""
    heads: dict[str, Any] = field(default_factory=dict)
    """What each head found: `box` [B, M, 4] as shares of what the model sees, `mask` [B, M, S, S] logits, `measures`
    [B, K] in their own units and `measures_std` [K], by which their errors are weighed."""
    taps: dict[str, Tensor] = field(default_factory=dict)
    """Outputs of named inner layers [B, V, C, g, g], averaged over g x g places, kept for distillation."""


@dataclass(frozen=True)
class Context:
    """What an objective sees of a forward."""

    targets: dict[str, Tensor]
    student: Outputs
    teacher: Outputs | None = None
    progress: float = 0.0
    """How far the training is, in [0, 1]."""


@dataclass(frozen=True)
class Bundle:
    """A loaded model and the encoder that speaks its language."""

    model: Any
    """A `mllm.models.trainable_model.AdaptedModel`."""
    encoder: Any
    """An encoder of `mllm.models.encoding`."""


def unsupervised(targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same targets with nothing to learn: no label, no known box, no known mask."""
    silent = dict(targets)
    for name, tensor in targets.items():
        if name.endswith("labels"):
            silent[name] = tensor.new_full(tensor.shape, IGNORE)
        elif name.endswith("_known"):
            silent[name] = tensor.new_zeros(tensor.shape)
    return silent
