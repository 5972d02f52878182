"""The encoder of a model without its weights: enough to see what a sample becomes."""

from __future__ import annotations

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from mllm.config.schema import ModelArgs
from mllm.models.encoder import ChatEncoder
from mllm.models.loading import find_checkpoint, load_config, load_processor
from mllm.models.medgemma.medgemma_perception import shape_images


def load_encoder(args: ModelArgs) -> ChatEncoder:
    """The encoder that `load_pretrained` would give beside the model; raises `ConfigError` as it does."""
    name = find_checkpoint(args.model_name_or_path)
    processor = load_processor(name, trust_remote_code=args.trust_remote_code)
    if args.type == "medgemma":
        # The number of image tokens belongs to model and processor together; a model on `meta` has no weights.
        config = load_config(name, trust_remote_code=args.trust_remote_code)
        assert isinstance(config, Gemma3Config), "the rules refuse other families"
        with torch.device("meta"):
            model = Gemma3ForConditionalGeneration(config)
        shape_images(model, processor, args.image_size, args.image_token_len)
    return ChatEncoder(processor, max_length=args.max_length, turn_end=args.turn_end, system=args.system)
