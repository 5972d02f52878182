"""Loading of Gemma 3n with images."""

from __future__ import annotations

import copy

from transformers import Gemma3nForConditionalGeneration, PreTrainedModel, ProcessorMixin

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.backbone.loading import load_config, load_model
from mllm.models.builder.build_options import checkpoint_of, load_options, quantization_bits
from mllm.models.builder.build_vision_part import tower_targets
from mllm.models.gemma3n.family import LANGUAGE_TARGETS, TOWERS, keep_unquantized


def load(args: ModelArgs, hardware: Hardware, processor: ProcessorMixin) -> PreTrainedModel:
    """Load Gemma 3n with its vision and audio towers."""
    name = checkpoint_of(args)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    timm_args = copy.deepcopy(config.vision_config.model_args)
    keep = keep_unquantized(quantization_bits(args), TOWERS)
    model = load_model(Gemma3nForConditionalGeneration, name, **load_options(args, hardware, keep=keep))
    model.config.vision_config.model_args = timm_args  # timm removes the arguments from the dict that it receives
    return model


def find_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return patterns of the layers of language and vision; the vision tower has convolutions."""
    return {"language": LANGUAGE_TARGETS, "vision": tower_targets(model, TOWERS["vision"])}
