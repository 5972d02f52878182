"""Layers of a vision tower whose outputs are read. The others receive no gradient."""

from __future__ import annotations

import re

from transformers import PreTrainedModel

from mllm.models.backbone.vision_part import VisionPart

ONLY_FOR_TOKENS = re.compile(r"\.embed_vision\.(embedding|hard_embedding_norm)\.")
"""Parts of the projector of Gemma 3n that embed token ids, which a vision part does not read."""


def is_read(model: PreTrainedModel, name: str) -> bool:
    """Return True if the features of images depend on a module or parameter of a vision tower or projector.

    The head of SigLIP pools an image to one vector, which no projector reads. A LLaVA reads one of the hidden states,
    often the last but one, before the norm at the end of the tower. MiniCPM-OCR merges patches inside its tower, unless
    its config keeps them all.
    """
    if isinstance(model, VisionPart) and ONLY_FOR_TOKENS.search(f".{name}."):
        return False
    parts, config = name.split("."), model.config.to_dict()
    if "head" in parts or ("vit_merger" in parts and config.get("downsample_mode") == "4x"):
        return False
    read, vision = config.get("vision_feature_layer"), config.get("vision_config")
    if read is None or vision is None:
        return True
    if "post_layernorm" in parts:
        return False
    layer = re.search(r"\.layers\.(\d+)\.", name)
    if layer is None:
        return True
    depth = vision["num_hidden_layers"]
    # Hidden state 0 is the embedding, so state k is the output of layer k - 1; negative ones count from the end.
    states = [state if state >= 0 else depth + 1 + state for state in (read if isinstance(read, list) else [read])]
    return int(layer[1]) < max(states)
