"""Types that cross the borders between packages, with the shapes of their tensors.

Suffixes of tensor names: B samples, V views (images of one sample), N tokens of one image, L text tokens, D width,
M marks (boxes or masks) of one sample, K measures, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

Role = Literal["system", "user", "assistant"]
IMAGE = "<image>"
"""Placeholder for one image in the text of a turn."""
BOX = "<box>"
"""Placeholder for one or several boxes or masks in the text of a turn."""
POINT = "<point>"
"""Placeholder for one or several points in the text of a turn."""
Spacing = tuple[float, float]  # width and height of a pixel in mm
IGNORE = -100
"""Label of a token that is not supervised (`ignore_index` of PyTorch)."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation. Its text may contain `<image>`, `<box>` and `<point>` placeholders."""

    role: Role
    text: str
    marks: tuple[tuple[int, ...], ...] = ()
    """Indices of the sample's marks of each `<box>` and `<point>` in the text, in order. Empty: both are plain text."""


@dataclass(frozen=True)
class UndecodedMask:
    """Facts of a mask that is not decoded, in the samples of `SampleDataset.inspect`."""

    height: int
    width: int
    content: bytes
    """Bytes by which masks are compared: equal for equal masks in one form."""
    bounds: tuple[float, float, float, float] | None = None
    """x1 y1 x2 y2 of all its polygons in pixels; None: unknown without decoding."""


@dataclass(frozen=True)
class Mark:
    """A location in an image: a box, a mask, both, or a point."""

    box: tuple[float, float, float, float] | None = None
    """x1 y1 x2 y2 in pixels of the image. Pixel (0, 0) spans 0 to 1 on both axes."""
    mask: np.ndarray | None = None
    """[H, W] bool."""
    point: tuple[float, float] | None = None
    """x y in pixels of the image."""
    image: int = 0
    """Index of the image in the sample, from 0."""
    undecoded: UndecodedMask | None = None
    """The mask, where it is not decoded; `mask` is None then."""


@dataclass(frozen=True)
class Frame:
    """Position of an image in the model's input: the image alone, or padded to a square around it."""

    width: int
    """Width of the image in pixels."""
    height: int
    """Height of the image in pixels."""
    left: int = 0
    """Pixels added before the first column."""
    top: int = 0
    """Pixels added above the first row."""
    full_width: int = 0
    """Width of the model's input in pixels. 0: that of the image."""
    full_height: int = 0
    """Height of the model's input in pixels. 0: that of the image."""

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height) of the model's input in pixels."""
        return self.full_width or self.width, self.full_height or self.height

    def relative(self, *coordinates: float) -> tuple[float, ...]:
        """Convert x y (x y ...) in pixels of the image to fractions of the model's input, in [0, 1] inside it."""
        offsets, lengths = (self.left, self.top), self.size
        return tuple((value + offsets[i % 2]) / lengths[i % 2] for i, value in enumerate(coordinates))

    def pixels(self, *coordinates: float) -> tuple[float, ...]:
        """Convert fractions of the model's input to pixels of the image: the inverse of `relative`."""
        offsets, lengths = (self.left, self.top), self.size
        return tuple(value * lengths[i % 2] - offsets[i % 2] for i, value in enumerate(coordinates))


@dataclass(frozen=True)
class Sample:
    """One example of a dataset: a conversation about images."""

    turns: list[Turn]
    images: list[Image] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    """Name of each image ('ED', 'ES'). Images are selected by name, never by order."""
    marks: list[Mark] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    """Regression targets in their own units. NaN: unknown."""
    group: str | None = None
    """Group, such as a patient. A group is never divided between splits."""
    source: str = ""
    """Origin for messages: `FILE, line 3`."""
    files: list[str] = field(default_factory=list)
    """Names of the image files, each once, as the table of the dataset has them."""
    spacings: tuple[Spacing | None, ...] = ()
    """Pixel spacing of each image, None where it is unknown. Empty: it is unknown for all images."""
    task: str | None = None
    """Task of the sample, such as 'counting', by which metrics choose their samples. None: all metrics apply."""
    modality: str | None = None
    """Modality of the images, such as 'CT'. None: unknown."""
    label: str | None = None
    """Structure or class of objects that the question is about, for tables by structure. None: unknown or several."""


@dataclass(frozen=True)
class Answer:
    """A predicted or a reference answer."""

    text: str
    marks: tuple[Mark, ...] = ()
    """Boxes, masks and points in the answer, in pixels of the original images."""
    unreadable: int = 0
    """Number of boxes and points in the text that could not be parsed."""
    tokens: int = 0
    """Number of generated tokens, including the end of the turn. 0 for a reference."""
    measures: dict[str, float] = field(default_factory=dict)
    """Numbers in their own units. NaN: unknown."""
    group: str | None = None
    """Group of a reference, such as a patient."""
    task: str | None = None
    """Task of the sample of a reference."""
    spacings: tuple[Spacing | None, ...] = ()
    """Pixel spacing of each image of the sample of a reference; see `Sample.spacings`."""
    options: dict[str, str] = field(default_factory=dict)
    """Letter -> text of the options that the question of a reference lists. Empty: it lists none."""
    scores: dict[str, float] = field(default_factory=dict)
    """Option -> probability of a prediction, if options were scored by their likelihood."""


@dataclass(frozen=True)
class Encoded:
    """One sample after the model's processor, not yet padded."""

    student: dict[str, Tensor]
    """Keyword arguments of the backbone. Tensors aligned with the text are [L, ...], others have images first."""
    targets: dict[str, Tensor]
    """Input of the objectives. `labels` [L] holds token ids, and `IGNORE` at positions that are not supervised."""
    source: str = ""
    truncated: bool = False
    """True if the end of the last answer was cut at `max_length`."""
    frames: tuple[Frame, ...] = ()
    """One frame per image of the sample."""
    teacher: Encoded | None = None
    """The sample encoded for the teacher, in distillation runs."""
    length: int | None = None
    """Number of tokens, including those of images. None: the number of labels."""
    unit: int | None = None
    """Index of the privacy unit, if units have several samples."""
    images_per_row: int = 0
    """Number of images, where the samples of a batch must have equal numbers (Mllama). 0: they may differ."""
    has_features: bool = False
    """True if `student` has stored features of images, not pixels. The samples of a batch must be equal in this."""

    image_key: str | None = None
    """Digest of the images. Samples with equal digests can share tokens; None: they do not."""
    image_end: int = 0
    """Number of tokens up to the end of the last image."""

    def __len__(self) -> int:
        return int(self.targets["labels"].shape[0]) if self.length is None else self.length

    def common_tokens(self, other: Encoded) -> int:
        """Return the number of first tokens that two samples have in common, without the last token of either."""
        length = min(len(self), len(other)) - 1
        differing = (self.student["input_ids"][:length] != other.student["input_ids"][:length]).nonzero()
        return int(differing[0]) if len(differing) else length

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the length of each sequence that is padded on its own: one, or those of source and target."""
        source = (len(self.student["input_ids"]),) if "decoder_input_ids" in self.student else ()
        return (*source, len(self))


@dataclass(frozen=True)
class Failure:
    """A row that could not be used, passed from a loader worker to the main process."""

    message: str
    """Error message for the user, in one line."""
    draw: tuple[int, int] | None = None
    """Index of the row in its split, and the epoch."""


class OnHost:
    """Base class of inputs of a model that are no tensors, and are read on the host."""


@dataclass(frozen=True)
class Batch:
    """Samples of one forward pass."""

    student: dict[str, Any]
    """Inputs of the model: tensors, and values of `OnHost`."""
    targets: dict[str, Tensor]
    teacher: dict[str, Any] | None = None
    """The samples encoded for the teacher, in distillation runs."""
    units: tuple[int, ...] | None = None
    """Privacy unit of each sample, equal units adjacent, if units have several samples."""
    images: tuple[int, ...] = ()
    """Index of the sample that each image belongs to."""

    @property
    def samples(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.targets.values())))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `function` applied to every tensor."""

        def apply(inputs: dict[str, Any]) -> dict[str, Any]:
            return {name: item if isinstance(item, OnHost) else function(item) for name, item in inputs.items()}

        return replace(
            self,
            student=apply(self.student),
            targets=apply(self.targets),
            teacher=None if self.teacher is None else apply(self.teacher),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory. Called by `torch.utils.data.DataLoader`."""
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class LogicalBatch:
    """Samples of one update, split into pieces that fit in memory. The split never changes the update."""

    pieces: list[Batch]
    samples: int
    """Number of samples without the skipped ones."""
    tokens: int
    """Number of tokens without padding."""
    padded_tokens: int
    """Number of tokens with padding."""
    truncated: int = 0
    """Number of samples that were cut at `max_length`."""
    failures: tuple[Failure, ...] = ()
    """Rows that could not be used."""

    def pin_memory(self) -> LogicalBatch:
        """Return the batch in page-locked memory."""
        return replace(self, pieces=[piece.pin_memory() for piece in self.pieces])


@dataclass(frozen=True)
class Outputs:
    """Result of a model's forward pass."""

    hidden_BLD: Tensor
    """Last hidden states. For a vision model, the mean features of each view: L is V."""
    vocabulary: nn.Module | None = None
    """Projection from D to the vocabulary, a module instead of [B, L, vocabulary] logits. None: a vision model."""
    softcap: float | None = None
    """Logits are `softcap * tanh(logits / softcap)` if the checkpoint sets it (Gemma 2, Gemma 3n)."""
    rows: tuple[Tensor, Tensor] | None = None
    """Ids [R] and weights [R, D] of added tokens, whose rows of the vocabulary are trained."""
    heads: dict[str, Tensor] = field(default_factory=dict)
    """Predictions of the heads: `box` [B, M, 4] as fractions of the model's input, `mask` [B, M, S, S] logits,
    `measures` [B, K] in their own units, and `measures_std` [K], the standard deviations that scale their errors."""
    taps: dict[str, Tensor] = field(default_factory=dict)
    """Outputs of inner layers by module path, [B, V, C, g, g], average-pooled to g x g, for distillation."""


@dataclass(frozen=True)
class Context:
    """Input of an objective: the outputs of one forward pass and their targets."""

    targets: dict[str, Tensor]
    student: Outputs
    teacher: Outputs | None = None
    progress: float = 0.0
    """Progress of the training, in [0, 1]."""
