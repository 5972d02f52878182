"""Tiny checkpoints of families that read images, each with its own processor and image processor."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AyaVisionProcessor,
    CLIPImageProcessor,
    Gemma4UnifiedAudioFeatureExtractor,
    Gemma4UnifiedImageProcessor,
    Gemma4UnifiedProcessor,
    Gemma4UnifiedVideoProcessor,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessor,
    Idefics2ImageProcessor,
    Idefics2Processor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MllamaImageProcessor,
    MllamaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from family_checkpoints.parts import SIZES, TOWER, byte_tokenizer, chat, ids_of
from mllm.tiny.parts import random_model

Checkpoint = tuple[Any, Any]
SIDE = 56
SQUARE = {"height": SIDE, "width": SIDE}
ROPE_3D = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
CLIP = {"model_type": "clip_vision_model", **TOWER, "image_size": SIDE, "patch_size": 14, "projection_dim": 64}
SIGLIP = {
    "model_type": "siglip_vision_model",
    **TOWER,
    "image_size": SIDE,
    "patch_size": 14,
    "vision_use_head": False,
}


def checkpoint(family: str, processor: Any, text: dict[str, Any], **values: Any) -> Checkpoint:
    """Return the model of a family with a processor. `text` adds to the dimensions `SIZES` of its language model."""
    ids = ids_of(processor.tokenizer)
    config = AutoConfig.for_model(family, text_config={**SIZES, **ids, **text}, **values)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, ids[name])
    return random_model(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)], config, seed=0), processor


def token(processor: Any, name: str) -> int:
    """Return the id of a token."""
    return int(processor.tokenizer.convert_tokens_to_ids(name))


def qwen_ids(processor: Any) -> dict[str, int]:
    """Return the ids of the tokens of Qwen's models around images."""
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: token(processor, f"<|{name}|>") for key, name in names.items()}


QWEN_CHAT = chat("<|vision_start|><|image_pad|><|vision_end|>")


def qwen2_5_vl() -> Checkpoint:
    images = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16})
    processor = Qwen2_5_VLProcessor(images, byte_tokenizer(), Qwen2VLVideoProcessor(), chat_template=QWEN_CHAT)
    vision = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=2, out_hidden_size=64)
    vision |= dict(window_size=56, fullatt_block_indexes=[1])
    text = {"rope_parameters": ROPE_3D}
    return checkpoint("qwen2_5_vl", processor, text, vision_config=vision, **qwen_ids(processor))


def qwen3_5() -> Checkpoint:
    images = Qwen2VLImageProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 16}, patch_size=16)
    processor = Qwen3VLProcessor(images, byte_tokenizer(), Qwen3VLVideoProcessor(), chat_template=QWEN_CHAT)
    vision = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=2, out_hidden_size=64)
    text: dict[str, Any] = dict(head_dim=32, layer_types=["linear_attention", "full_attention"])
    text |= dict(linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4)
    text |= dict(rope_parameters={**ROPE_3D, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25})
    return checkpoint(
        "qwen3_5", processor, text, vision_config={**vision, "num_position_embeddings": 64}, **qwen_ids(processor)
    )


def idefics3() -> Checkpoint:
    edge = {"longest_edge": SIDE}
    images = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    processor = Idefics3Processor(images, byte_tokenizer(), image_seq_len=4, chat_template=chat())
    return checkpoint(
        "idefics3",
        processor,
        {"model_type": "llama"},
        vision_config={**TOWER, "image_size": SIDE, "patch_size": 14},
        image_token_id=token(processor, "<image>"),
    )


def smolvlm() -> Checkpoint:
    edge = {"longest_edge": SIDE}
    images = SmolVLMImageProcessor(size={"longest_edge": 2 * SIDE}, max_image_size=edge)
    processor = SmolVLMProcessor(
        images, byte_tokenizer(), SmolVLMVideoProcessor(), image_seq_len=4, chat_template=chat()
    )
    return checkpoint(
        "smolvlm",
        processor,
        {"model_type": "llama"},
        vision_config={**TOWER, "image_size": SIDE, "patch_size": 14},
        image_token_id=token(processor, "<image>"),
    )


def pixtral(family: str, merge: int, **values: Any) -> Checkpoint:
    """Return a family with Pixtral's tower: images keep their shape, and rows of tokens end in a token."""
    images = PixtralImageProcessor(patch_size=16 * merge, size={"longest_edge": 96})
    processor = PixtralProcessor(
        images, byte_tokenizer(), patch_size=16, spatial_merge_size=merge, chat_template=chat("[IMG]")
    )
    vision = {"model_type": "pixtral", **TOWER, "image_size": 96, "patch_size": 16, "head_dim": 32}
    index = token(processor, "[IMG]")
    return checkpoint(
        family, processor, {"model_type": "mistral"}, vision_config=vision, image_token_index=index, **values
    )


def lfm2_vl() -> Checkpoint:
    images = Lfm2VlImageProcessor(
        min_image_tokens=4,
        max_image_tokens=16,
        tile_size=64,
        size={"height": 64, "width": 64},
        min_tiles=2,
        max_tiles=4,
    )
    processor = Lfm2VlProcessor(images, byte_tokenizer(), chat_template=chat())
    vision = {"model_type": "siglip2_vision_model", **TOWER, "num_patches": 64, "patch_size": 16}
    return checkpoint(
        "lfm2_vl",
        processor,
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        vision_config={**vision, "vision_use_head": False},
        image_token_id=token(processor, "<image>"),
        projector_hidden_size=64,
    )


def glm4v() -> Checkpoint:
    images = Glm4vImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16 * 2})
    processor = Glm4vProcessor(
        images,
        byte_tokenizer(),
        Glm4vVideoProcessor(),
        chat_template=chat("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    vision = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=2, out_hidden_size=64, image_size=56)
    rope = {**ROPE_3D, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    return checkpoint(
        "glm4v",
        processor,
        {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=token(processor, "<|image|>"),
        video_token_id=token(processor, "<|video|>"),
        image_start_token_id=token(processor, "<|begin_of_image|>"),
        image_end_token_id=token(processor, "<|end_of_image|>"),
    )


def mllama() -> Checkpoint:
    images = MllamaImageProcessor(size=SQUARE, max_image_tiles=2)
    processor = MllamaProcessor(images, byte_tokenizer(bos_token="<|endoftext|>"), chat_template=chat("<|image|>"))
    vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_global_layers=1, attention_heads=2)
    vision |= dict(vision_output_dim=128, image_size=SIDE, max_num_tiles=2, intermediate_layers_indices=[0])
    text = {"cross_attention_layers": [1], "num_hidden_layers": 2}
    vision["supported_aspect_ratios"] = [[1, 1], [1, 2], [2, 1]]  # type: ignore[assignment]
    index = token(processor, "<|image|>")
    return checkpoint("mllama", processor, text, vision_config=vision, image_token_index=index)


def gemma4_unified() -> Checkpoint:
    """Return Gemma 4 12B, which projects patches of 48 pixels without a vision tower."""
    names = dict(boi_token="<img>", eoi_token="</img>", image_token="<image>")
    names |= dict(boa_token="<|image_start|>", eoa_token="<|image_end|>", audio_token="<|python_tag|>")
    processor = Gemma4UnifiedProcessor(
        Gemma4UnifiedAudioFeatureExtractor(),
        Gemma4UnifiedImageProcessor(max_soft_tokens=70),
        byte_tokenizer(**names),
        Gemma4UnifiedVideoProcessor(),
        chat_template=chat(),
    )
    ids = {f"{name}_id": token(processor, names[name]) for name in names if name != "eoa_token"}
    text = dict(head_dim=32, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    return checkpoint(
        "gemma4_unified",
        processor,
        {**text, "sliding_window": 64, "per_layer_config": {"01": {"head_dim": 64}}},
        vision_config={"mm_embed_dim": 64, "mm_posemb_size": 64, "output_proj_dims": 64},
        eoa_token_index=token(processor, names["eoa_token"]),
        video_token_id=token(processor, "<|video|>"),
        **ids,
    )


def llava_next() -> Checkpoint:
    pins = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    images = LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=pins)
    processor = LlavaNextProcessor(
        images,
        byte_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat(),
    )
    return checkpoint(
        "llava_next",
        processor,
        {"model_type": "mistral"},
        vision_config=CLIP,
        image_token_index=token(processor, "<image>"),
        image_grid_pinpoints=pins,
    )


def llava_onevision() -> Checkpoint:
    pins = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    images = LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=pins)
    processor = LlavaOnevisionProcessor(
        images,
        byte_tokenizer(),
        LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=chat(),
    )
    return checkpoint(
        "llava_onevision",
        processor,
        {"model_type": "qwen2"},
        vision_config=SIGLIP,
        image_token_index=token(processor, "<image>"),
        video_token_index=token(processor, "<video>"),
        image_grid_pinpoints=pins,
    )


def vipllava() -> Checkpoint:
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    processor = LlavaProcessor(
        images,
        byte_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat(),
    )
    return checkpoint(
        "vipllava",
        processor,
        {"model_type": "llama"},
        vision_config=CLIP,
        image_token_index=token(processor, "<image>"),
        vision_feature_layers=[-2, 1],
    )


def aya_vision() -> Checkpoint:
    images = GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=2)
    processor = AyaVisionProcessor(
        images, byte_tokenizer(), patch_size=14, img_size=SIDE, downsample_factor=2, chat_template=chat()
    )
    return checkpoint(
        "aya_vision",
        processor,
        {"model_type": "cohere2", "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config=SIGLIP,
        image_token_index=token(processor, "<|IMG_PATCH|>"),
    )


def idefics2() -> Checkpoint:
    """Return Idefics2: images keep their shape, and a resampler makes 8 tokens of each."""
    images = Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": SIDE}, do_image_splitting=False)
    processor = Idefics2Processor(images, byte_tokenizer(), image_seq_len=8, chat_template=chat())
    resampler = dict(resampler_n_latents=8, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=32)
    return checkpoint(
        "idefics2",
        processor,
        {"model_type": "mistral"},
        vision_config={**TOWER, "image_size": SIDE, "patch_size": 14},
        perceiver_config={**resampler, "num_key_value_heads": 1, "hidden_size": 64},
        image_token_id=token(processor, "<image>"),
    )
