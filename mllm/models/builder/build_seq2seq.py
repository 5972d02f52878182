"""Type `seq2seq`: every architecture of transformers' AutoModelForSeq2SeqLM, trained on text, by config only."""

from __future__ import annotations

from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedModel,
)

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.targets import derived_targets
from mllm.models.backbone.half_safe import keep_residual_in_fp32
from mllm.models.backbone.loading import find_checkpoint, load_config, load_model
from mllm.models.builder.build_options import load_options, lora_options
from mllm.models.encoding.seq2seq import Seq2SeqEncoder
from mllm.models.encoding.text_processor import TextProcessor, load_text_processor
from mllm.models.language_model import LanguageModel
from mllm.registry import MODELS
from mllm.structures import Bundle


@MODELS.register_module("seq2seq")
def build_seq2seq(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Any model that transformers' AutoModelForSeq2SeqLM knows: T5Gemma, T5, mT5..."""
    for key in ("heads", "box_format", "fuse_vision_layers", "image_size", "image_token_len"):
        if vars(args)[key]:
            raise ConfigError(
                f"model_args.{key} is for models that read images, and type='seq2seq' trains text: remove it"
            )
    name = find_checkpoint(args.model_name_or_path)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    own_code = args.trust_remote_code and "AutoModelForSeq2SeqLM" in config.to_dict().get("auto_map", {})
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and not own_code:
        raise ConfigError(
            f"type='seq2seq' loads what AutoModelForSeq2SeqLM knows (t5gemma, t5 ...), but model_name_or_path '{name}' "
            f"is a '{config.model_type}' model: use type='causal-lm' for models that only decode"
        )
    model = load_model(
        AutoModelForSeq2SeqLM,
        name,
        **load_options(config, args, hardware, keep=["lm_head"]),
    )
    towers = seq2seq_towers(model)
    processor = load_text_processor(name, trust_remote_code=args.trust_remote_code)
    adapted = attach_adapter(
        model,
        adapter_path=args.adapter_path,
        targets=seq2seq_targets(model),
        **lora_options(args),
    )
    if hardware.precision == "fp16":
        keep_residual_in_fp32(adapted)
    encoder = Seq2SeqEncoder(
        processor,
        max_length=args.max_length,
        decoder_start_id=decoder_start(name, processor),
        turn_end=args.turn_end,
        system=args.system,
        chat_template=args.chat_template,
    )
    return Bundle(LanguageModel(adapted, towers), encoder)


def seq2seq_towers(model: PreTrainedModel) -> dict[str, str]:
    """Where encoder and decoder are: the prefixes of their modules."""
    names = {module: name for name, module in model.named_modules()}
    return {"encoder": names[model.get_encoder()], "language": names[model.get_decoder()]}


def seq2seq_targets(model: PreTrainedModel) -> dict[str, str]:
    """The pattern of the Linear layers of both halves: both hold language, and the usual target means both."""
    halves = [derived_targets(model, {"language": half})["language"] for half in seq2seq_towers(model).values()]
    return {"language": "|".join(f"(?:{half})" for half in halves)}


def decoder_start(name: str, processor: TextProcessor) -> int:
    """The id that the decoder begins with: the checkpoint's own, else `<bos>` (T5Gemma), else padding (T5)."""
    try:
        start = GenerationConfig.from_pretrained(name).decoder_start_token_id
    except OSError:
        start = None  # the checkpoint has no generation_config.json
    tokenizer = processor.tokenizer
    ids = (start, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return int(next(index for index in ids if isinstance(index, int)))
