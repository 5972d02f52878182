"""Model that generates text: a backbone that reads images and text, its vocabulary, and optional heads for objects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mllm.models.backbone.added_tokens import TokenRows
from mllm.models.backbone.hidden_states import states_of
from mllm.models.backbone.logit_scales import logit_cap, logit_scale
from mllm.models.backbone.segment_attention import RowAttention, use_segment_attention
from mllm.models.backbone.vision_layers import VisionLayers
from mllm.models.encoding.image_features import backbone_inputs
from mllm.models.encoding.packing import LAYOUT
from mllm.models.encoding.sharing import SharedRow, keys_and_values, sample_alone, shared_hidden_state
from mllm.models.heads import BoxHead, LayerFusion, MaskHead
from mllm.models.trainable_model import TrainableModel
from mllm.structures import Outputs


class LanguageModel(TrainableModel):
    """A backbone of transformers that returns hidden states instead of logits, with heads for boxes and masks.

    `backbone` is a `...ForConditionalGeneration`, a `...ForCausalLM` or a `peft.PeftModel` around one. `towers` maps
    the parts of the backbone to the prefix of their parameter names, such as `{"vision": "model.vision_tower"}`.
    `heads` may have a `box` and a `mask`. Heads that read the image read the `layers` of the vision tower; without such
    a head they are None. `rows` are the added tokens. `fusion` is the mixture of vision layers that the projector
    reads, if there is one.
    """

    generates_text = True

    def __init__(
        self,
        backbone: nn.Module,
        towers: dict[str, str],
        *,
        heads: dict[str, nn.Module] | None = None,
        layers: VisionLayers | None = None,
        rows: TokenRows | None = None,
        fusion: LayerFusion | None = None,
    ) -> None:
        super().__init__(backbone, towers, heads)
        self.rows, self.fusion, self.layers = rows, fusion, layers
        self.shares_tokens = False
        """Samples of a batch can share their first tokens."""
        self._attend: RowAttention | None = None
        """Attention of rows; None: SDPA."""
        self._image_blocks = False
        """The tokens of an image attend to each other in both directions, if samples share tokens."""
        self._pending_objects: tuple[Tensor, Tensor] | None = None
        """Positions [B, M] and embeddings [B, M, D] for the next call of the input embedding."""
        if self.heads:
            self.pretrained.get_input_embeddings().register_forward_hook(self._insert_objects)

    @property
    def box_head(self) -> BoxHead | None:
        """Return the box head, or None."""
        head = dict(self.heads.items()).get("box")
        assert head is None or isinstance(head, BoxHead)
        return head

    @property
    def mask_head(self) -> MaskHead | None:
        """Return the mask head, or None."""
        head = dict(self.heads.items()).get("mask")
        assert head is None or isinstance(head, MaskHead)
        return head

    def forward(self, **student: Any) -> Outputs:
        """Return the last hidden states [B, L, D] of a batch, the vocabulary, and the predictions of the heads."""
        model = self.pretrained
        with self.inserting_objects(student) as inputs, self.recording_vision() as features:
            if LAYOUT in student:
                hidden_BLD = shared_hidden_state(model, inputs, self._shared_row(student, self._attend))
            else:
                hidden_BLD = states_of(model, inputs)
            if (scale := logit_scale(model.config)) != 1:
                hidden_BLD = hidden_BLD * scale
            predictions = {}
            if self.heads:
                state_BMKD = self.object_states(hidden_BLD, student["object_positions"])
                predictions = self.predict_objects(state_BMKD, features(hidden_BLD), student["object_images"])
        rows = None if self.rows is None else self.rows.vocabulary
        return Outputs(hidden_BLD, model.get_output_embeddings(), self.softcap, rows, heads=predictions)

    def share_tokens(self, image_blocks: bool, attend: RowAttention | None = None) -> None:
        """Let samples of a batch share their first tokens from now on.

        Args:
            image_blocks: The tokens of an image attend to each other in both directions.
            attend: Attention of the rows of the training; None: SDPA.
        """
        use_segment_attention(self.pretrained)
        self.shares_tokens, self._image_blocks, self._attend = True, image_blocks, attend

    def keys_and_values(self, student: dict[str, Any]) -> tuple[SharedRow, list[tuple[Tensor, Tensor]]]:
        """Return the row of samples that share tokens, and the keys and values [1, H, T, D] of each layer."""
        row = self._shared_row(student, None)  # rows of an evaluation differ in length, and each would be compiled
        with self.inserting_objects(student) as inputs:
            return row, keys_and_values(self.pretrained, inputs, row)

    def _shared_row(self, student: dict[str, Any], attend: RowAttention | None) -> SharedRow:
        """Return the row of the samples of a batch that share tokens."""
        mask_BL = student["attention_mask"]
        return SharedRow.of(mask_BL, student[LAYOUT], image_blocks=self._image_blocks, attend=attend)

    @torch.no_grad()
    def own_logits(self, student: dict[str, Any], sample: int, positions: Tensor) -> Tensor:
        """Return the logits [P, vocabulary] of one sample at `positions` [P], computed by the model of transformers."""
        model = self.pretrained
        if LAYOUT in student:
            student, sample = sample_alone(model, student, sample), 0
        with self.inserting_objects(student) as inputs:
            if "logits_to_keep" in inspect.signature(model.forward).parameters:
                logits: Tensor = model(**inputs, logits_to_keep=positions).logits[sample]
            else:
                logits = model(**inputs).logits[sample, positions]
        return logits

    @contextmanager
    def inserting_objects(self, student: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the keyword arguments of the backbone; its next input embedding contains the objects of `student`."""
        left_out = {name for name in student if name.startswith("object_")} | {LAYOUT}
        own = {name: tensor for name, tensor in student.items() if name not in left_out}
        inputs = backbone_inputs(own)
        if self.heads:
            self._pending_objects = (student["object_positions"], self.embed_objects(student))
        try:
            yield inputs
            assert self._pending_objects is None, "the input embedding was not called, so no object was inserted"
        finally:
            self._pending_objects = None

    @contextmanager
    def recording_vision(self) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
        """Yield a function that returns the features of the images in the forward pass of the block.

        Its argument is a tensor with the device and dtype of the features of a batch without images. It returns the
        features [V, N, D] that each head reads, under the name of the head, for those that read the image.
        """
        heads, layers = (self.box_head, self.mask_head), self.layers
        readers = {head.predicts: head for head in heads if head is not None and head.reads_image}
        if not readers or layers is None:
            yield lambda like: {}
            return
        with layers.recorded() as outputs:
            yield lambda like: {name: head.features(outputs or layers.blank(like)) for name, head in readers.items()}

    def embed_objects(self, objects: dict[str, Tensor]) -> Tensor:
        """Return the embeddings [B, M, D] of objects from their known boxes and masks, in fp32."""
        parts = []
        if self.box_head is not None:
            parts.append(objects["object_has_box"][..., None] * self.box_head.embed(objects["object_boxes"]))
        if self.mask_head is not None:
            parts.append(objects["object_has_mask"][..., None] * self.mask_head.embed(objects["object_masks"]))
        return torch.stack(parts).sum(dim=0)

    @property
    def context(self) -> int:
        """Return K, the number of hidden states that the heads read per object."""
        return 1 if self.mask_head is None else self.mask_head.context

    def object_states(self, hidden_BLD: Tensor, positions_BM: Tensor) -> Tensor:
        """Return the K hidden states [B, M, K, D] before each object token. Position 0 repeats at the text's start."""
        back_K = torch.arange(-self.context, 0, device=positions_BM.device)
        positions_BMK = (positions_BM[..., None] + back_K).clamp_min(0)
        states_BXD = hidden_BLD.gather(1, positions_BMK.flatten(1)[..., None].expand(-1, -1, hidden_BLD.shape[-1]))
        return states_BXD.unflatten(1, positions_BMK.shape[1:])

    def predict_objects(self, state_BMKD: Tensor, features: dict[str, Tensor], images_BM: Tensor) -> dict[str, Tensor]:
        """Return the predictions of the heads for objects in images `images_BM`; the last state predicts the token.

        `features` are those of `recording_vision`.
        """
        predictions = {}
        if self.mask_head is not None:
            predictions["mask"] = self.mask_head.predict(state_BMKD, features["mask"], images_BM)
        if self.box_head is not None:
            predictions["box"] = self.box_head.predict(
                state_BMKD[:, :, -1], predictions.get("mask"), features.get("box"), images_BM
            )
        return predictions

    def _insert_objects(self, embedding: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        """Insert the pending objects into the embeddings [B, L, D]."""
        if self._pending_objects is None:
            return embedded
        (positions_BM, objects_BMD), self._pending_objects = self._pending_objects, None
        # Absent objects, at -1, are written into a last column, which is cut: to select the others, an update would
        # wait for the device. Without objects the heads are still part of the graph, so that all processes have
        # gradients for the same tensors.
        columns_BM = positions_BM.where(positions_BM >= 0, embedded.shape[1])
        samples_B1 = torch.arange(len(positions_BM), device=positions_BM.device)[:, None]
        extended = nn.functional.pad(embedded, (0, 0, 0, 1))
        return extended.index_put((samples_B1, columns_BM), objects_BMD.to(embedded.dtype))[:, :-1]

    @property
    def softcap(self) -> float | None:
        """Return the bound of the final logits in the checkpoint's config, or None."""
        return logit_cap(self.pretrained.config)
