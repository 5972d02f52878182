"""The model that every type builds: a backbone that reads images and text, its vocabulary, and perhaps heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mllm.models.backbone.added_tokens import TokenRows
from mllm.models.backbone.vision_layers import VisionLayers
from mllm.models.encoding.packing import ROW, last_hidden_state
from mllm.models.heads import BoxHead, LayerFusion, MaskHead
from mllm.models.trainable_model import AdaptedModel
from mllm.structures import Outputs


class PerceptionModel(AdaptedModel):
    """A backbone of transformers, asked for hidden states instead of logits, and what reads objects out of them.

    `backbone` is a `...ForConditionalGeneration` or a `peft.PeftModel` around one. `towers` names the parts of the
    backbone by the prefix of their parameters, such as `{"vision": "model.vision_tower"}`, for reports. `heads` has a
    `box` or a `mask` or both; a mask is read from the `layers` of the vision tower. `rows` are the tokens that were
    added; `fusion` is the mixture of layers that the projector reads, where there is one.
    """

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
        self._pending: tuple[Tensor, Tensor] | None = None
        if self.heads:
            self.pretrained.get_input_embeddings().register_forward_hook(self._embed)

    @property
    def box_head(self) -> BoxHead | None:
        """The head that reads and writes boxes."""
        head = dict(self.heads.items()).get("box")
        assert head is None or isinstance(head, BoxHead)
        return head

    @property
    def mask_head(self) -> MaskHead | None:
        """The head that reads and writes masks."""
        head = dict(self.heads.items()).get("mask")
        assert head is None or isinstance(head, MaskHead)
        return head

    def forward(self, **student: Tensor) -> Outputs:
        """The last hidden states [B, L, D] of a batch's keyword arguments, what the heads read, and the vocabulary."""
        model = self.pretrained
        with self.telling(student) as inputs, self.seeing() as features:
            hidden_BLD = last_hidden_state(model.base_model, inputs, student.get(ROW))
            found = {}
            if self.heads:
                state_BMKD = self.states(hidden_BLD, student["object_positions"])
                found = self.read(state_BMKD, features(hidden_BLD), student["object_images"])
        rows = None if self.rows is None else self.rows.vocabulary
        return Outputs(hidden_BLD, model.get_output_embeddings(), self.softcap, rows, heads=found)

    @contextmanager
    def telling(self, student: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The backbone's keyword arguments; the next embedding of tokens has the objects of `student` written in."""
        inputs = {name: tensor for name, tensor in student.items() if not name.startswith("object_") and name != ROW}
        if self.heads:
            self._pending = (student["object_positions"], self.write(student))
        try:
            yield inputs
            assert self._pending is None, "the backbone embedded no token, so it knows nothing of the objects"
        finally:
            self._pending = None

    @contextmanager
    def seeing(self) -> Iterator[Any]:
        """A function that gives what the mask head sees of the images in the block's forward; None without one."""
        head, layers = self.mask_head, self.layers
        if head is None or layers is None:
            yield lambda like: None
            return
        with layers.kept() as kept:
            yield lambda like: head.features(kept or layers.blank(like))

    def write(self, objects: dict[str, Tensor]) -> Tensor:
        """The embeddings [B, M, D] of objects, from what is known of them; fp32."""
        parts = []
        if self.box_head is not None:
            parts.append(objects["object_has_box"][..., None] * self.box_head.write(objects["object_boxes"]))
        if self.mask_head is not None:
            parts.append(objects["object_has_mask"][..., None] * self.mask_head.write(objects["object_masks"]))
        return torch.stack(parts).sum(dim=0)

    @property
    def context(self) -> int:
        """How many hidden states of an object are read."""
        return 1 if self.mask_head is None else self.mask_head.context

    def states(self, hidden_BLD: Tensor, positions_BM: Tensor) -> Tensor:
        """The states [B, M, K, D] that lead up to objects' tokens; before a text's first stands that one again."""
        back_K = torch.arange(-self.context, 0, device=positions_BM.device)
        places_BMK = (positions_BM[..., None] + back_K).clamp_min(0)
        chosen_BXD = hidden_BLD.gather(1, places_BMK.flatten(1)[..., None].expand(-1, -1, hidden_BLD.shape[-1]))
        return chosen_BXD.unflatten(1, places_BMK.shape[1:])

    def read(self, state_BMKD: Tensor, features_VND: Tensor | None, images_BM: Tensor) -> dict[str, Tensor]:
        """What each head finds in hidden states, of which the last predicts an object's token in one of the images."""
        found = {}
        if self.mask_head is not None:
            assert features_VND is not None
            found["mask"] = self.mask_head.read(state_BMKD, features_VND, images_BM)
        if self.box_head is not None:
            found["box"] = self.box_head.read(state_BMKD[:, :, -1], found.get("mask"))
        return found

    def _embed(self, table: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        """Writes what is pending into the embeddings [B, L, D]."""
        if self._pending is None:
            return embedded
        (positions_BM, written_BMD), self._pending = self._pending, None
        sample, mark = (positions_BM >= 0).nonzero(as_tuple=True)
        chosen = written_BMD[sample, mark].to(embedded.dtype)
        # Where nothing is chosen the heads are in the graph all the same: every process has the same gradients to give.
        return embedded.index_put((sample, positions_BM[sample, mark]), chosen)

    @property
    def softcap(self) -> float | None:
        """The bound of the final logits, where the checkpoint's config has one."""
        text: dict[str, Any] = self.pretrained.config.get_text_config(decoder=True).to_dict()
        return text.get("final_logit_softcapping")
