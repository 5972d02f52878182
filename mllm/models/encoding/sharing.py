"""Samples of one row that share their first tokens, such as several questions about one image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mllm.models.backbone.hidden_states import states_of
from mllm.models.backbone.segment_attention import RowAttention, Segment, Segments, attending_in, to_device
from mllm.models.encoding.image_features import PREFIX, compute_features, cut_features
from mllm.models.encoding.packing import LAYOUT, RowLayout
from mllm.models.encoding.processor_outputs import text_of


@dataclass(frozen=True)
class SharedRow:
    """Mapping of the tokens of padded samples [B, L] to one row [1, T] that has shared tokens once."""

    segments: Segments
    sample_T: Tensor
    column_T: Tensor
    """Sample and column of each token of the row."""
    order_T: Tensor
    """Position of each token in its sample, from 0."""
    source_BL: Tensor
    """Index in the row of each token of the samples; 0 at padding."""
    mask_BL: Tensor

    @classmethod
    def of(
        cls, mask_BL: Tensor, layout: RowLayout, *, image_blocks: bool = False, attend: RowAttention | None = None
    ) -> SharedRow:
        """Return the row of some samples, padded on the right. Nothing waits for the device of the samples.

        Args:
            mask_BL: 1 at the tokens of the samples.
            layout: Layout of the samples.
            image_blocks: The tokens of an image attend to each other in both directions.
            attend: Attention of the row; None: SDPA.
        """
        segments: list[Segment] = []
        samples, columns = list[int](), list[int]()
        sources: list[list[int]] = []
        for sample, (leader, length) in enumerate(zip(layout.leaders, layout.lengths, strict=True)):
            first = 0 if leader == sample else layout.shared[sample]
            start, end = len(samples), len(samples) + length - first
            before = sources[leader][:first] if first else []
            sources.append([*before, *range(start, end)])
            if start == end:
                continue  # all tokens are shared
            blocks = _after(first, layout.blocks[sample]) if image_blocks else ()
            segments.append(Segment(start, end, _runs(before), blocks))
            samples.extend([sample] * (end - start))
            columns.extend(range(first, length))
        padded = [[*source, *[0] * (mask_BL.shape[1] - len(source))] for source in sources]
        source_BL, sample_T, column_T = (
            to_device(torch.tensor(numbers), mask_BL.device) for numbers in (padded, samples, columns)
        )
        return cls(Segments(segments, attend), sample_T, column_T, column_T, source_BL, mask_BL)

    @property
    def position_ids(self) -> Tensor:
        """Return the position of each token in its sample [1, T]."""
        return self.order_T[None]

    def pack(self, tensor_BL: Tensor) -> Tensor:
        """Return padded samples [B, L] as a row [1, T]."""
        return tensor_BL[self.sample_T, self.column_T][None]

    def unpack(self, hidden_1TD: Tensor) -> Tensor:
        """Return a row [1, T, D] as padded samples [B, L, D]. Padding is 0."""
        hidden_BLD = hidden_1TD[0][self.source_BL]
        return hidden_BLD * self.mask_BL[..., None].to(hidden_BLD.dtype)


def shared_hidden_state(model: PreTrainedModel, inputs: dict[str, Any], row: SharedRow) -> Tensor:
    """Return the hidden states [B, L, D] of samples that share tokens; `inputs` have the images of leaders only."""
    with attending_in(row.segments):
        return row.unpack(states_of(model, _packed(inputs, row)))


def keys_and_values(model: PreTrainedModel, inputs: dict[str, Any], row: SharedRow) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values [1, H, T, D] of all tokens of a row in each layer, also in one with a sliding window."""
    cache: Any = DynamicCache()
    with attending_in(row.segments):
        model.base_model(**_packed(inputs, row), past_key_values=cache, use_cache=True, return_dict=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _packed(inputs: dict[str, Any], row: SharedRow) -> dict[str, Any]:
    """Return the inputs of samples as those of their row."""
    packed = {
        name: row.pack(value) if isinstance(value, Tensor) and value.shape == row.mask_BL.shape else value
        for name, value in inputs.items()
        if name != "attention_mask"
    }
    return {**packed, "position_ids": row.position_ids}


def sample_alone(model: Any, student: Mapping[str, Any], sample: int) -> dict[str, Tensor]:
    """Return the inputs of one sample of a batch of one row, with features of its images."""
    alone = {name: tensor[sample : sample + 1] for name, tensor in text_of(student).items()}
    stored = {name: tensor for name, tensor in student.items() if name.startswith(PREFIX)}
    if not stored and "pixel_values" not in student:
        return alone
    layout: RowLayout = student[LAYOUT]
    leader = layout.leaders[sample]
    is_image_BL = student["input_ids"] == model.config.image_token_id
    leaders = [index for index, other in enumerate(layout.leaders) if index == other]
    counts = {index: int(is_image_BL[index].sum()) for index in leaders}
    start = sum(count for index, count in counts.items() if index < leader)
    if not counts[leader]:
        return alone
    features = stored or compute_features(model, student)
    return alone | cut_features(features, start, start + counts[leader])


def digest_of(images: Sequence[Image]) -> str:
    """Return a digest of the sizes, modes and pixels of images."""
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(f"{image.mode} {image.size} ".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def _runs(numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return start and end of the runs of consecutive numbers."""
    runs = list[tuple[int, int]]()
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return tuple(runs)


def _after(first: int, blocks: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return blocks from a token on, counted from it."""
    return tuple((max(0, start - first), end - first) for start, end in blocks if end > first)
