"""Samples of one row that share their first tokens, such as several questions about one image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel

from mllm.models.backbone.segment_attention import Segment, Segments, attending_in
from mllm.models.encoding.image_features import PREFIX, compute_features, cut_features
from mllm.models.encoding.packing import LEADER, states_of
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
    def of(cls, mask_BL: Tensor, leader_B: Tensor, shared_B: Tensor, type_BL: Tensor | None = None) -> SharedRow:
        """Return the row of some samples, padded on the right.

        Args:
            mask_BL: 1 at the tokens of the samples.
            leader_B: Leader of each sample.
            shared_B: Number of tokens that it shares with its leader; of a leader, those that others share with it.
            type_BL: 1 at the tokens of images that attend to each other in both directions; None: there are none.
        """
        lengths, leaders, shared = mask_BL.sum(dim=1).tolist(), leader_B.tolist(), shared_B.tolist()
        segments: list[Segment] = []
        samples, columns = list[int](), list[int]()
        source_BL = torch.zeros_like(mask_BL, dtype=torch.long)
        prefixes: dict[int, tuple[int, int]] = {}

        def append(sample: int, first: int, prefix: tuple[int, int]) -> tuple[int, int]:
            last = lengths[sample] if first or not shared[sample] else shared[sample]
            start, end = len(samples), len(samples) + last - first
            blocks = () if type_BL is None else _blocks(type_BL[sample, first:last].tolist())
            segments.append(Segment(start, end, prefix, blocks))
            samples.extend([sample] * (last - first))
            columns.extend(range(first, last))
            source_BL[sample, first:last] = torch.arange(start, end, device=source_BL.device)
            return start, end

        for sample, (leader, count) in enumerate(zip(leaders, shared, strict=True)):
            if leader == sample:
                prefixes[sample] = append(sample, 0, (0, 0))
            if count:
                source_BL[sample, :count] = source_BL[leader, :count]
                append(sample, count, prefixes[leader])
        device = mask_BL.device
        sample_T, column_T = torch.tensor(samples, device=device), torch.tensor(columns, device=device)
        return cls(Segments(segments), sample_T, column_T, column_T, source_BL, mask_BL)

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
    packed = {
        name: row.pack(value) if isinstance(value, Tensor) and value.shape == row.mask_BL.shape else value
        for name, value in inputs.items()
        if name != "attention_mask"
    }
    with attending_in(row.segments):
        return row.unpack(states_of(model, {**packed, "position_ids": row.position_ids}))


def sample_alone(model: Any, student: Mapping[str, Tensor], sample: int) -> dict[str, Tensor]:
    """Return the inputs of one sample of a batch whose samples share tokens, with features of its images."""
    leader = int(student[LEADER][sample])
    is_image_BL = student["input_ids"] == model.config.image_token_id
    leaders = [index for index, other in enumerate(student[LEADER].tolist()) if index == other]
    counts = {index: int(is_image_BL[index].sum()) for index in leaders}
    start = sum(count for index, count in counts.items() if index < leader)
    alone = {name: tensor[sample : sample + 1] for name, tensor in text_of(student).items()}
    if not counts[leader]:
        return alone
    stored = {name: tensor for name, tensor in student.items() if name.startswith(PREFIX)}
    features = stored or compute_features(model, student)
    return alone | cut_features(features, start, start + counts[leader])


def digest_of(images: Sequence[Image]) -> str:
    """Return a digest of the sizes, modes and pixels of images."""
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(f"{image.mode} {image.size} ".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def _blocks(types: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return start and end of the runs of ones."""
    blocks, start = [], None
    for index, kind in enumerate([*types, 0]):
        if kind and start is None:
            start = index
        elif not kind and start is not None:
            blocks.append((start, index))
            start = None
    return tuple(blocks)
