"""Loading of models of text by transformers' auto classes, with processor and encoder."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.adapters.language_layers import kernel_layers
from mllm.models.backbone.load_errors import explained
from mllm.models.backbone.loading import load_config, load_model, type_advice
from mllm.models.builder.build_chat import load_chat_processor
from mllm.models.builder.build_options import checkpoint_of, encoder_options, load_options, quantization_bits
from mllm.models.encoding.seq2seq import Seq2SeqEncoder
from mllm.models.encoding.text_processor import TextProcessor, load_text_processor
from mllm.models.text.family import DRAFTERS, FULL_PRECISION, full_precision_modules
from mllm.models.text.towers import encoder_decoder_towers


def load_processor(args: ModelArgs) -> TextProcessor:
    """Load the tokenizer of a checkpoint with the interface of a processor."""
    return load_text_processor(checkpoint_of(args), trust_remote_code=args.trust_remote_code)


def load_encoder_decoder_processor(args: ModelArgs) -> ProcessorMixin | TextProcessor:
    """Load the processor of an architecture that reads images (T5Gemma 2), or else the tokenizer."""
    config = load_config(checkpoint_of(args), trust_remote_code=args.trust_remote_code)
    return load_chat_processor(args) if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else load_processor(args)


def load_decoder(args: ModelArgs, hardware: Hardware, processor: TextProcessor) -> PreTrainedModel:
    """Load any model that AutoModelForCausalLM supports: Gemma, Gemma 3n, VaultGemma, Llama, Qwen..."""
    name = _checked(args, AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)
    keep = FULL_PRECISION
    if args.load_in_4bit or args.load_in_8bit:
        skeleton = build_decoder_skeleton(args)
        keep = [*keep, output_layer(skeleton), *kernel_layers(skeleton)]
    return load_model(AutoModelForCausalLM, name, **load_options(args, hardware, keep=keep))


def load_encoder_decoder(
    args: ModelArgs, hardware: Hardware, processor: ProcessorMixin | TextProcessor
) -> PreTrainedModel:
    """Load any model that AutoModelForSeq2SeqLM supports: T5Gemma, T5, mT5..."""
    skeleton = build_encoder_decoder_skeleton(args)
    keep = [*full_precision_modules(quantization_bits(args), encoder_decoder_towers(skeleton)), output_layer(skeleton)]
    name = checkpoint_of(args)
    return load_model(AutoModelForSeq2SeqLM, name, **load_options(args, hardware, keep=keep))


def output_layer(model: PreTrainedModel) -> str:
    """Return the name of the projection to the vocabulary. It stays in full precision, and may share the embedding."""
    output = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is output)


def build_decoder_skeleton(args: ModelArgs) -> PreTrainedModel:
    """Return a decoder on `meta`."""
    return _skeleton(args, AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)


def build_encoder_decoder_skeleton(args: ModelArgs) -> PreTrainedModel:
    """Return an encoder-decoder on `meta`."""
    return _skeleton(args, AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)


def build_seq2seq_encoder(args: ModelArgs, processor: ProcessorMixin | TextProcessor) -> Seq2SeqEncoder:
    """Return the encoder of pairs of source and target."""
    start, forced = decoder_start(args, processor)
    return Seq2SeqEncoder(processor, decoder_start_id=start, forced_start_id=forced, **encoder_options(args))


def decoder_start(args: ModelArgs, processor: ProcessorMixin | TextProcessor) -> tuple[int, int | None]:
    """Return the first token id of the decoder, and the id that generation forces after it (a language), or None.

    They are the same in training and generation. The first id is that of `generation_config.json`, else that of
    `config.json`, else `<bos>` (T5Gemma), else padding (T5).
    """
    name = checkpoint_of(args)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    try:
        settings = GenerationConfig.from_pretrained(name)
    except OSError:  # the checkpoint has no generation_config.json
        settings = GenerationConfig.from_model_config(config)
    tokenizer: Any = processor.tokenizer
    stated = (settings.decoder_start_token_id, config.to_dict().get("decoder_start_token_id"))
    ids = (*stated, tokenizer.bos_token_id, tokenizer.pad_token_id)
    forced = settings.forced_bos_token_id
    return next(index for index in ids if isinstance(index, int)), forced if isinstance(forced, int) else None


def _checked(args: ModelArgs, kind: Any, mapping: Any) -> str:
    """Return the checkpoint's name; raise `ConfigError` if the auto class `kind` does not load its architecture."""
    name = checkpoint_of(args)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    brings_code = args.trust_remote_code and kind.__name__ in config.to_dict().get("auto_map", {})
    if type(config) not in mapping and not brings_code:
        raise ConfigError(
            f"type='{args.type}' loads the architectures of {kind.__name__}, but model_name_or_path '{name}' is a "
            f"'{config.model_type}' model: {type_advice(config)}"
        )
    if not brings_code and mapping is MODEL_FOR_CAUSAL_LM_MAPPING and _has_no_text_model(config):
        raise ConfigError(
            f"type='{args.type}' would train the language model of '{name}' alone, which the Auto classes "
            f"do not load for a '{config.model_type}' model: {type_advice(config)}, which also trains on texts"
        )
    if config.model_type in DRAFTERS:
        raise ConfigError(
            f"model_name_or_path '{name}' is a '{config.model_type}' model, which drafts tokens for another model and "
            "reads its states: choose that model"
        )
    if not brings_code and _is_of_sound(config, mapping):
        raise ConfigError(
            f"model_name_or_path '{name}' is a '{config.model_type}' model, which reads or writes sound: only models "
            "of text, and of text with images, are supported"
        )
    return name


def _has_no_text_model(config: PretrainedConfig) -> bool:
    """Return True if the language model of an architecture that reads images is not in the table itself (Mllama)."""
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and (
        model_class.config_class not in MODEL_FOR_CAUSAL_LM_MAPPING
    )


def _is_of_sound(config: PretrainedConfig, mapping: Any) -> bool:
    """Return True if an architecture in an auto class's table reads or writes sound.

    Those of AutoModelForSeq2SeqLM are decoders with an encoder of sound; those of text are encoder-decoders.
    """
    if mapping is MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return not config.is_encoder_decoder
    if type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and "audio_config" in config.to_dict():
        return True
    tables = (MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING)
    return any(type(config) in table for table in tables)


def _skeleton(args: ModelArgs, kind: Any, mapping: Any) -> PreTrainedModel:
    name = _checked(args, kind, mapping)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    with torch.device("meta"), explained(name):
        model: PreTrainedModel = kind.from_config(config, trust_remote_code=args.trust_remote_code)
    return model
