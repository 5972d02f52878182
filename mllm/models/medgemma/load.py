"""Loading of Gemma 3 with images: processor, model and encoder."""

from __future__ import annotations

from transformers import PreTrainedModel, ProcessorMixin

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.auto.load import vision_grid
from mllm.models.backbone.loading import load_config
from mllm.models.builder.build_chat import build_chat_encoder, load_chat_processor
from mllm.models.builder.build_options import checkpoint_of, load_options, quantization_bits
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.medgemma.family import TOWERS, keep_unquantized
from mllm.models.medgemma.medgemma_perception import load_gemma3, shape_images, shape_processor


def load_processor(args: ModelArgs) -> ProcessorMixin:
    """Load the processor with the image size and the number of image tokens of `args`."""
    processor = load_chat_processor(args)
    config = load_config(checkpoint_of(args), trust_remote_code=args.trust_remote_code)
    shape_processor(config, processor, args.image_size, args.image_token_len)
    return processor


def load(args: ModelArgs, hardware: Hardware, processor: ProcessorMixin) -> PreTrainedModel:
    """Load Gemma 3 with images of the size and the number of tokens of `args`."""
    keep = keep_unquantized(quantization_bits(args), TOWERS)
    model = load_gemma3(checkpoint_of(args), **load_options(args, hardware, keep=keep))
    shape_images(model, processor, args.image_size, args.image_token_len)
    return model


def build_encoder(args: ModelArgs, processor: ProcessorMixin) -> ChatEncoder:
    """Return the encoder of questions about images of the size of `args`."""
    name = checkpoint_of(args)

    def grid() -> int:
        if args.image_size is None:
            return vision_grid(args)
        patch = load_config(name, trust_remote_code=args.trust_remote_code).vision_config.patch_size
        return int(args.image_size // patch)

    return build_chat_encoder(args, processor, grid=grid)
