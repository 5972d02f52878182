"""The encoder of a model without its weights: enough to see what a sample becomes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AddedToken, Gemma3Config, Gemma3ForConditionalGeneration, PretrainedConfig, ProcessorMixin

from mllm.config.defaults import SHIKRA_TYPES, TEXT_TYPES, with_defaults
from mllm.config.schema import ModelArgs
from mllm.models.backbone.loading import find_checkpoint, load_config, load_processor
from mllm.models.builder.build_seq2seq import decoder_start
from mllm.models.builder.build_shared import chosen_format
from mllm.models.builder.build_shikra import llava_processor
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.marks import MarkWriter
from mllm.models.encoding.seq2seq import Seq2SeqEncoder
from mllm.models.encoding.text_processor import load_text_processor
from mllm.models.heads import MaskHead
from mllm.models.medgemma.medgemma_perception import shape_images
from mllm.registry import HEADS


def load_encoder(args: ModelArgs) -> ChatEncoder | Seq2SeqEncoder:
    """The encoder that `load_pretrained` would give beside the model; raises `ConfigError` as it does."""
    args = with_defaults(args)
    if args.type in TEXT_TYPES:
        return _text_encoder(args)
    processor, vision = _processor(args)
    box_format = chosen_format(args)
    tokens = [AddedToken(token, special=True, normalized=False) for token in box_format.tokens]
    processor.tokenizer.add_tokens(tokens, special_tokens=True)
    marks = MarkWriter(
        box_format,
        pad_to_square=bool(args.pad_to_square),
        mask_size=_mask_size(args, vision),
    )
    return ChatEncoder(processor, marks=marks, **_told(args))


def _told(args: ModelArgs) -> dict[str, Any]:
    """What every encoder is told."""
    return {key: vars(args)[key] for key in ("max_length", "turn_end", "system", "chat_template")}


def _text_encoder(args: ModelArgs) -> ChatEncoder | Seq2SeqEncoder:
    """The encoder of a model of text."""
    name = find_checkpoint(args.model_name_or_path)
    processor = load_text_processor(name, trust_remote_code=args.trust_remote_code)
    if args.type == "causal-lm":
        return ChatEncoder(processor, **_told(args))
    return Seq2SeqEncoder(processor, decoder_start_id=decoder_start(name, processor), **_told(args))


def _processor(args: ModelArgs) -> tuple[ProcessorMixin, PretrainedConfig]:
    """The processor as the model's builder shapes it, and the config of the vision tower."""
    if args.type in SHIKRA_TYPES:
        return llava_processor(args)
    name = find_checkpoint(args.model_name_or_path)
    processor = load_processor(name, trust_remote_code=args.trust_remote_code)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    if args.type == "medgemma":
        # The number of image tokens belongs to model and processor together; a model on `meta` has no weights.
        assert isinstance(config, Gemma3Config), "the rules refuse other families"
        with torch.device("meta"):
            model = Gemma3ForConditionalGeneration(config)
        shape_images(model, processor, args.image_size, args.image_token_len)
        config = model.config
    return processor, config.vision_config


def _mask_size(args: ModelArgs, vision: PretrainedConfig) -> int | None:
    """Pixels of a mask's side, where `args` name a mask head; a head on `meta` has no weights."""
    for given in args.heads.values():
        options = dict(given)
        if HEADS.find(options.pop("type")) is MaskHead:
            grid = vision.image_size // vision.patch_size
            with torch.device("meta"):
                return MaskHead(1, 1, 1, grid, **options).size
    return None
