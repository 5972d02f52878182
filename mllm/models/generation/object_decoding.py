"""Decoding of object tokens: the heads predict each generated object, and its embedding is fed back as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mllm.models.encoding.marks import clipped
from mllm.models.language_model import LanguageModel
from mllm.structures import Frame, Mark

Prediction = dict[str, Tensor]
"""Predictions of the heads for one object: `box` [4] and `mask` [S, S] logits."""


class ObjectDecoder:
    """Hooks that apply the heads to every generated object token.

    The heads read the hidden states that predict the token. The token's embedding is replaced by the heads' embedding
    of the predicted object; in training, of the true object. Objects belong to the first image of their sample.
    """

    def __init__(self, model: LanguageModel, object_id: int, images: Tensor) -> None:
        self.model, self.object_id = model, object_id
        self.images = images
        """[B]: index of the first image of each sample among the images of the batch."""
        self.predictions: list[list[Prediction]] = [[] for _ in images]
        self._features: dict[str, Tensor] = {}
        self._states: Tensor | None = None
        """[B, K, D]: the last K hidden states that the heads read."""

    @contextmanager
    def decoding(self, student: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield the keyword arguments of the backbone for `generate`; objects are decoded inside the block."""
        model = self.model.pretrained
        with self.model.inserting_objects(student) as inputs, self.model.recording_vision() as features:
            hooks = [
                model.get_input_embeddings().register_forward_hook(self._replace_embeddings),
                model.base_model.register_forward_hook(self._state_hook(features, inputs["attention_mask"])),
            ]
            try:
                yield inputs
            finally:
                for hook in hooks:
                    hook.remove()

    def finish(self, tokens: Tensor) -> None:
        """Predict the objects of the last tokens [B], which no further step embeds."""
        self._predict((tokens == self.object_id).nonzero().squeeze(1))

    def _state_hook(self, features: Callable[[Tensor], dict[str, Tensor]], mask: Tensor) -> Any:
        """Return a hook that keeps the last hidden states and the features of the images."""
        first = mask.argmax(dim=1)  # position of the first token after the padding

        def keep_states(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            hidden: Tensor = output.last_hidden_state
            if self._states is None:
                self._features = features(hidden)
                positions = torch.arange(hidden.shape[1] - self.model.context, hidden.shape[1], device=first.device)
                positions = torch.maximum(positions, first[:, None])
                self._states = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
            else:
                self._states = torch.cat([self._states[:, 1:], hidden[:, -1:]], dim=1)

        return keep_states

    def _replace_embeddings(self, embedding: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        """Replace the embeddings [B, 1, D] of object tokens that were just generated."""
        if self._states is None:
            return embedded  # the prompt: its objects are inserted by the model
        rows = (arguments[0][:, -1] == self.object_id).nonzero().squeeze(1)
        if len(rows):
            embedded = embedded.clone()
            embedded[rows, -1] = self._predict(rows).to(embedded.dtype)
        return embedded

    def _predict(self, rows: Tensor) -> Tensor:
        """Predict one object for each sample in `rows` [X]. Return the embeddings [X, D] of the predictions."""
        assert self._states is not None
        if not len(rows):
            return self._states[rows, -1]
        states, images = self._states[rows][:, None], self.images.to(rows.device)[rows][:, None]
        predictions = self.model.predict_objects(states, self._features, images)
        objects: dict[str, Tensor] = {}
        if "box" in predictions:
            boxes = predictions["box"].clamp(0, 1)  # true boxes are inside the image too
            objects |= {"object_boxes": boxes, "object_has_box": torch.ones_like(boxes[..., 0], dtype=torch.bool)}
        mask_head = self.model.mask_head
        if mask_head is not None:
            masks = predictions["mask"].sigmoid() > mask_head.threshold
            objects |= {"object_masks": masks, "object_has_mask": masks.flatten(2).any(dim=-1)}
        for number, row in enumerate(rows.tolist()):
            prediction = {name: tensor[number, 0].float().cpu() for name, tensor in predictions.items()}
            self.predictions[row].append(prediction)
        return self.model.embed_objects(objects)[:, 0]

    def marks(self, row: int, frames: Sequence[Frame]) -> tuple[Mark, ...]:
        """Return the objects of one sample's answer, in pixels of its first image."""
        head = self.model.mask_head
        threshold = 0.5 if head is None else head.threshold
        return tuple(_mark(item, frames[0], threshold) for item in self.predictions[row]) if frames else ()


def _mark(prediction: Prediction, frame: Frame, threshold: float) -> Mark:
    """Return a prediction as a location in the image of `frame`."""
    box = clipped(frame, frame.pixels(*prediction["box"].tolist())) if "box" in prediction else None
    mask = _resize(prediction["mask"].sigmoid(), frame) > threshold if "mask" in prediction else None
    return Mark(box=box, mask=mask)  # type: ignore[arg-type]


def _resize(probabilities: Tensor, frame: Frame) -> np.ndarray:
    """Resize probabilities [S, S] of the frame to those [H, W] of the image, bilinearly."""
    full = Image.fromarray(probabilities.numpy().astype(np.float32)).resize(frame.size, Image.Resampling.BILINEAR)
    image_area = (frame.left, frame.top, frame.left + frame.width, frame.top + frame.height)
    return np.asarray(full.crop(image_area))
