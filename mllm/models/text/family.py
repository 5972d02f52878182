"""Records of types `causal-lm` and `seq2seq`: models of text, of any architecture of transformers' auto classes."""

from __future__ import annotations

from collections.abc import Mapping

from mllm.config.schema import ModelArgs
from mllm.family import Family, LazyFunction

IMAGE_KEYS = frozenset({"heads", "fuse_vision_layers", "image_size", "image_token_len", "part", "train_vision"})
"""Keys of `ModelArgs` for models that read images."""
FULL_PRECISION = [
    "lm_head",
    # Gemma 3n clamps the coefficients of its alternating updates in place, which no quantized weight allows, and its
    # other towers are not used with text.
    *("prediction_coefs", "correction_coefs", "modality_router"),
    *("vision_tower", "audio_tower", "embed_vision", "embed_audio"),
]
DRAFTERS = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})
"""Architectures of AutoModelForCausalLM that draft tokens from the states of another model."""
TITLES = {
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3n_text": "Gemma 3n",
    "t5gemma": "T5Gemma",
    "vaultgemma": "VaultGemma",
}


def keep_unquantized(bits: int, towers: Mapping[str, str]) -> list[str]:
    """Return the modules that stay in full precision in a decoder."""
    return FULL_PRECISION


def full_precision_modules(bits: int, towers: Mapping[str, str]) -> list[str]:
    """Return the modules that stay in full precision in an encoder-decoder, among them those that read images."""
    return ["lm_head", *(prefix for tower, prefix in towers.items() if tower in ("projector", "vision"))]


def is_encoder_decoder(model_type: str | None) -> bool:
    """Return True if transformers loads an architecture as an encoder-decoder. T5Gemma 2 also reads images."""
    from transformers.models.auto import modeling_auto

    return model_type in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES


def is_decoder(model_type: str | None) -> bool:
    """Return True if an architecture is a decoder of text, which reads no images."""
    from transformers.models.auto import modeling_auto

    reads_images = model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    known = model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known and not reads_images and not is_encoder_decoder(model_type)


def choose_tiny(checkpoint: str) -> str:
    """Return the tiny decoder that replaces a checkpoint.

    VaultGemma has no chat template. A Gemma 3n may be exported to llama.cpp, which needs more layers.
    """
    names = {"vaultgemma": "vaultgemma", "gemma-3n": "gemma3n-deep"}
    return next((tiny for part, tiny in names.items() if part in checkpoint.lower()), "gemma3n")


CAUSAL_LM = Family(
    type="causal-lm",
    options=ModelArgs,
    processor=LazyFunction("mllm.models.text.load:load_processor"),
    encoder=LazyFunction("mllm.models.builder.build_chat:build_chat_encoder"),
    load=LazyFunction("mllm.models.text.load:load_decoder"),
    skeleton=LazyFunction("mllm.models.text.load:build_decoder_skeleton"),
    towers=LazyFunction("mllm.models.text.towers:decoder_towers"),
    lora_targets=LazyFunction("mllm.models.text.towers:decoder_targets"),
    keep_unquantized=keep_unquantized,
    chosen_for=is_decoder,
    unsupported_keys=IMAGE_KEYS,
    reads_images=False,
    hub_task="text-generation",
    titles=TITLES,
    tiny={
        "gemma3n": LazyFunction("mllm.models.gemma3n.tiny:gemma3n"),
        "gemma3n-deep": LazyFunction("mllm.models.gemma3n.tiny:gemma3n_deep"),
        "vaultgemma": LazyFunction("mllm.models.text.tiny:vaultgemma"),
    },
    stand_in=choose_tiny,
)
SEQ2SEQ = Family(
    type="seq2seq",
    options=ModelArgs,
    processor=LazyFunction("mllm.models.text.load:load_encoder_decoder_processor"),
    encoder=LazyFunction("mllm.models.text.load:build_seq2seq_encoder"),
    load=LazyFunction("mllm.models.text.load:load_encoder_decoder"),
    skeleton=LazyFunction("mllm.models.text.load:build_encoder_decoder_skeleton"),
    towers=LazyFunction("mllm.models.text.towers:encoder_decoder_towers"),
    lora_targets=LazyFunction("mllm.models.text.towers:encoder_decoder_targets"),
    keep_unquantized=full_precision_modules,
    chosen_for=is_encoder_decoder,
    unsupported_keys=IMAGE_KEYS | {"box_format"},
    reads_images=False,
    cannot_pack="its decoder attends to the sources of all samples in a row",
    hub_task="text-generation",
    tiny={
        "t5gemma": LazyFunction("mllm.models.text.tiny:t5gemma"),
        "t5gemma2": LazyFunction("mllm.models.text.tiny_t5gemma2:t5gemma2"),
    },
    stand_in=lambda checkpoint: "t5gemma2" if "t5gemma-2" in checkpoint.lower() else "t5gemma",
)
