"""Loading of Gemma 3n with images."""

from __future__ import annotations

from transformers import Gemma3nForConditionalGeneration, PreTrainedModel, ProcessorMixin

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.backbone.loading import load_model
from mllm.models.builder.build_options import checkpoint_of, load_options, quantization_bits
from mllm.models.builder.build_vision_part import tower_targets
from mllm.models.gemma3n.family import LANGUAGE_TARGETS, TOWERS, keep_unquantized


def load(args: ModelArgs, hardware: Hardware, processor: ProcessorMixin) -> PreTrainedModel:
    """Load Gemma 3n with its vision and audio towers."""
    name = checkpoint_of(args)
    keep = keep_unquantized(quantization_bits(args), TOWERS)
    return load_model(Gemma3nForConditionalGeneration, name, **load_options(args, hardware, keep=keep))


def find_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return patterns of the layers of language and vision; the vision tower has convolutions."""
    return {"language": LANGUAGE_TARGETS, "vision": tower_targets(model, TOWERS["vision"])}
