"""Objects in an answer: read by the heads at the token that the model wrote, and told to it again as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mllm.models.encoding.marks import within
from mllm.models.language_model import PerceptionModel
from mllm.structures import Frame, Mark

Found = dict[str, Tensor]
"""What the heads found of one object: `box` [4] and `mask` [S, S] logits."""


class ObjectReader:
    """Watches a model write, reads every object's token that it writes, and tells it what was read.

    The state that predicts the token is read, after those before it where the mask head wants them, and the token's
    embedding becomes what the heads write of that object: the same as in training, where they write the true one.
    Objects lie in the first image of their sample.
    """

    def __init__(self, perception: PerceptionModel, object_id: int, images: Tensor) -> None:
        self.perception, self.object_id = perception, object_id
        self.images = images
        """[B]: the first image of each sample among those of the batch."""
        self.found: list[list[Found]] = [[] for _ in images]
        self._features: Tensor | None = None
        self._states: Tensor | None = None
        """[B, K, D]: the last states, as many as are read."""

    @contextmanager
    def watching(self, student: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The backbone's keyword arguments for `generate`; what is written inside the block is watched."""
        model = self.perception.pretrained
        with self.perception.telling(student) as inputs, self.perception.seeing() as features:
            hooks = [
                model.get_input_embeddings().register_forward_hook(self._tell),
                model.base_model.register_forward_hook(self._remember(features, inputs["attention_mask"])),
            ]
            try:
                yield inputs
            finally:
                for hook in hooks:
                    hook.remove()

    def finish(self, tokens: Tensor) -> None:
        """Reads the objects of the last tokens [B], which no later step has asked for."""
        self._read((tokens == self.object_id).nonzero().squeeze(1))

    def _remember(self, features: Any, mask: Tensor) -> Any:
        first = mask.argmax(dim=1)  # what stands before it is padding

        def remember(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            hidden: Tensor = output.last_hidden_state
            if self._states is None:
                self._features = features(hidden)
                places = torch.arange(hidden.shape[1] - self.perception.context, hidden.shape[1], device=first.device)
                kept = torch.maximum(places, first[:, None])
                self._states = hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[-1]))
            else:
                self._states = torch.cat([self._states[:, 1:], hidden[:, -1:]], dim=1)

        return remember

    def _tell(self, table: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        """Replaces the embeddings [B, 1, D] of objects' tokens that were just written."""
        if self._states is None:
            return embedded  # the prompt, whose objects are known
        rows = (arguments[0][:, -1] == self.object_id).nonzero().squeeze(1)
        if len(rows):
            embedded = embedded.clone()
            embedded[rows, -1] = self._read(rows).to(embedded.dtype)
        return embedded

    def _read(self, rows: Tensor) -> Tensor:
        """Reads one object of each of some samples, and gives the embeddings [X, D] that say what was read."""
        assert self._states is not None
        if not len(rows):
            return self._states[rows, -1]
        states, images = self._states[rows][:, None], self.images.to(rows.device)[rows][:, None]
        found = self.perception.read(states, self._features, images)
        told: dict[str, Tensor] = {}
        if "box" in found:
            boxes = found["box"].clamp(0, 1)  # as every box is that the model was told in training
            told |= {"object_boxes": boxes, "object_has_box": torch.ones_like(boxes[..., 0], dtype=torch.bool)}
        mask_head = self.perception.mask_head
        if mask_head is not None:
            masks = found["mask"].sigmoid() > mask_head.threshold
            told |= {"object_masks": masks, "object_has_mask": masks.flatten(2).any(dim=-1)}
        for number, row in enumerate(rows.tolist()):
            self.found[row].append({name: tensor[number, 0].float().cpu() for name, tensor in found.items()})
        return self.perception.write(told)[:, 0]

    def marks(self, row: int, frames: Sequence[Frame]) -> tuple[Mark, ...]:
        """The objects of a sample's answer in pixels of its first image."""
        head = self.perception.mask_head
        threshold = 0.5 if head is None else head.threshold
        return tuple(_mark(found, frames[0], threshold) for found in self.found[row]) if frames else ()


def _mark(found: Found, frame: Frame, threshold: float) -> Mark:
    """What the heads found, as a place in the image that lies in `frame`."""
    box = within(frame, frame.pixels(*found["box"].tolist())) if "box" in found else None
    mask = _enlarged(found["mask"].sigmoid(), frame) > threshold if "mask" in found else None
    return Mark(box=box, mask=mask)  # type: ignore[arg-type]


def _enlarged(probabilities: Tensor, frame: Frame) -> np.ndarray:
    """Probabilities [S, S] of the frame's pixels as those of the image's, [H, W], bilinear."""
    full = Image.fromarray(probabilities.numpy().astype(np.float32)).resize(frame.size, Image.Resampling.BILINEAR)
    inside = (frame.left, frame.top, frame.left + frame.width, frame.top + frame.height)
    return np.asarray(full.crop(inside))
