"""Type `causal-lm`: every architecture of transformers' AutoModelForCausalLM, trained on text, by config only."""

from __future__ import annotations

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.adapters.targets import derived_targets, matching, pattern_of
from mllm.models.backbone.loading import find_checkpoint, load_config, load_model
from mllm.models.builder.build_options import load_options
from mllm.models.builder.build_shared import assemble
from mllm.models.encoding.text_processor import load_text_processor
from mllm.registry import MODELS
from mllm.structures import Bundle

ATTENTION_AND_MLP = r".*\.(self_attn|mlp)\.[^.]+"
"""What a LoRA on the language model adapts; Gemma 3n has further projections beside them."""


KEPT = [
    "lm_head",
    # Gemma 3n clamps the coefficients of its alternating updates in place, which no quantized weight allows, and its
    # other towers take no part in text.
    *("prediction_coefs", "correction_coefs", "modality_router"),
    *("vision_tower", "audio_tower", "embed_vision", "embed_audio"),
]
"""What stays as it is stored where the rest is quantized."""


@MODELS.register_module("causal-lm")
def build_causal_lm(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Any model that transformers' AutoModelForCausalLM knows: Gemma, Gemma 3n, VaultGemma, Llama, Qwen..."""
    for key in ("image_size", "image_token_len"):
        if vars(args)[key] is not None:
            raise ConfigError(f"model_args.{key} is for models that read images, and type='causal-lm' trains text")
    name = find_checkpoint(args.model_name_or_path)
    config = load_config(name, trust_remote_code=args.trust_remote_code)
    own_code = args.trust_remote_code and "AutoModelForCausalLM" in config.to_dict().get("auto_map", {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        raise ConfigError(
            f"type='causal-lm' loads what AutoModelForCausalLM knows (llama, gemma3_text, gemma3n ...), but "
            f"model_name_or_path '{name}' is a '{config.model_type}' model"
        )
    model = load_model(
        AutoModelForCausalLM,
        name,
        **load_options(config, args, hardware, keep=KEPT),
    )
    processor = load_text_processor(name, trust_remote_code=args.trust_remote_code)
    towers = {"language": language_tower(model)}
    return assemble(
        model, processor, towers=towers, targets=language_targets(model, towers), args=args, hardware=hardware
    )


def language_tower(model: PreTrainedModel) -> str:
    """The name of the module that is the language model: all of it, where nothing else is beside it."""
    return next(name for name, module in model.named_modules() if module is model.get_decoder())


def language_targets(model: PreTrainedModel, towers: dict[str, str]) -> dict[str, str]:
    """The pattern of the attention's and the MLP's Linear layers; of all where a family names them otherwise."""
    targets = derived_targets(model, towers)
    common = matching(ATTENTION_AND_MLP, model) & matching(targets["language"], model)
    return {"language": pattern_of(common, model)} if common else targets
