"""Tiny checkpoints of more families that read images and train, each with its own processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import (
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    JanusImageProcessor,
    JanusProcessor,
    LightOnOcrProcessor,
    LlavaNextImageProcessor,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6Processor,
    MiniCPMV4_6VideoProcessor,
    Ovis2ImageProcessor,
    Ovis2Processor,
    PaddleOCRVLImageProcessor,
    PaddleOCRVLProcessor,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
    PixtralImageProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

from family_checkpoints.image_text import (
    CLIP,
    QWEN_CHAT,
    ROPE_3D,
    SIDE,
    SIGLIP,
    SQUARE,
    Checkpoint,
    checkpoint,
    qwen_ids,
    token,
)
from family_checkpoints.parts import TOWER, byte_tokenizer, chat

SLIDING = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR: dict[str, Any] = dict(
    head_dim=32,
    layer_types=["linear_attention", "full_attention"],
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
)
EXPERTS: dict[str, Any] = dict(num_experts=2, num_experts_per_tok=2, moe_intermediate_size=64)
QWEN_TOWER: dict[str, Any] = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=2, out_hidden_size=64)


def cohere2_vision() -> Checkpoint:
    names = dict(boi_token="<|START_OF_IMG|>", eoi_token="<|END_OF_IMG|>")
    names |= dict(image_token="<|IMG_PATCH|>", img_line_break_token="<|IMG_LINE_BREAK|>")
    images = Cohere2VisionImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=2, patch_size=2)
    processor = Cohere2VisionProcessor(images, byte_tokenizer(**names), chat_template=chat("<|IMG_PATCH|>"))
    return checkpoint(
        "cohere2_vision",
        processor,
        {"model_type": "cohere2", **SLIDING},
        vision_config=SIGLIP,
        downsample_factor=2,
        image_token_id=token(processor, "<|IMG_PATCH|>"),
        alignment_intermediate_size=128,
    )


def deepseek_vl() -> Checkpoint:
    images = DeepseekVLImageProcessor(size=SQUARE, min_size=14)
    tokenizer = byte_tokenizer(image_token="<image>")
    processor = DeepseekVLProcessor(images, tokenizer, chat_template=chat(), num_image_tokens=16)
    index = token(processor, "<image>")
    return checkpoint("deepseek_vl", processor, {"model_type": "llama"}, vision_config=SIGLIP, image_token_id=index)


def janus() -> Checkpoint:
    images = JanusImageProcessor(size=SQUARE, min_size=14)
    tokenizer = byte_tokenizer(image_token="<image>", boi_token="<img>", eoi_token="</img>")
    processor = JanusProcessor(images, tokenizer, chat_template=chat(), num_image_tokens=16)
    vision: dict[str, Any] = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2.0, depth=2)
    vision |= dict(image_size=SIDE, patch_size=14, projection_dim=64, num_image_tokens=16)
    codes: dict[str, Any] = dict(embed_dim=8, num_embeddings=32, latent_channels=32, base_channels=32)
    codes |= dict(channel_multiplier=[1, 1], num_res_blocks=1, projection_dim=64, image_token_embed_dim=64)
    return checkpoint(
        "janus",
        processor,
        {"model_type": "llama"},
        vision_config=vision,
        vq_config={**codes, "num_hidden_layers": 2},
        image_token_id=token(processor, "<image>"),
    )


def perception_lm() -> Checkpoint:
    images = PerceptionLMImageProcessor(tile_size=SIDE, max_num_tiles=2, vision_input_type="vanilla", size=SQUARE)
    processor = PerceptionLMProcessor(
        PerceptionLMVideoProcessor(),
        images,
        byte_tokenizer(image_token="<image>", video_token="<video>"),
        patch_size=14,
        chat_template=chat(),
        pooling_ratio=2,
    )
    layers = dict(embed_dim=64, depth=2, num_heads=2, img_size=[SIDE, SIDE], patch_size=14, global_pool="")
    layers |= dict(use_post_transformer_norm=False, init_values=0.1, ref_feat_shape=[4, 4], class_token=False)
    vision = dict(model_type="timm_wrapper", architecture="vit_pe_core_large_patch14_336", do_pooling=False)
    vision |= dict(num_classes=0, global_pool="map", model_args=layers, initializer_range=0.02)
    return checkpoint(
        "perception_lm",
        processor,
        {"model_type": "llama"},
        vision_config=vision,
        image_token_id=token(processor, "<image>"),
        video_token_id=token(processor, "<video>"),
        vision_use_cls_token=False,
        projector_pooling_ratio=2,
    )


def qwen_moe(family: str, text: dict[str, Any], **vision: Any) -> Checkpoint:
    """Return a Qwen-VL with experts."""
    images = Qwen2VLImageProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 16}, patch_size=16)
    processor = Qwen3VLProcessor(images, byte_tokenizer(), Qwen3VLVideoProcessor(), chat_template=QWEN_CHAT)
    tower = {**QWEN_TOWER, "num_position_embeddings": 64, **vision}
    return checkpoint(family, processor, {**EXPERTS, **text}, vision_config=tower, **qwen_ids(processor))


def glm(family: str, processor: Any, text: dict[str, Any]) -> Checkpoint:
    """Return a GLM-V with a processor."""
    rope = {**ROPE_3D, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    return checkpoint(
        family,
        processor,
        {"rope_parameters": rope, **text},
        vision_config={"model_type": "glm4v_vision", **QWEN_TOWER, "image_size": 56}
        if family == "glm46v"
        else {**QWEN_TOWER, "image_size": 56},
        image_token_id=token(processor, "<|image|>"),
        video_token_id=token(processor, "<|video|>"),
        image_start_token_id=token(processor, "<|begin_of_image|>"),
        image_end_token_id=token(processor, "<|end_of_image|>"),
    )


GLM_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 32}
GLM_CHAT = chat("<|begin_of_image|><|image|><|end_of_image|>")


def glm46v() -> Checkpoint:
    images = Glm46VImageProcessor(size=GLM_SIZE)
    processor = Glm46VProcessor(images, byte_tokenizer(), Glm46VVideoProcessor(), chat_template=GLM_CHAT)
    return glm("glm46v", processor, {"model_type": "glm4v_text"})


def glm4v_moe() -> Checkpoint:
    images = Glm4vImageProcessor(size=GLM_SIZE)
    processor = Glm4vProcessor(images, byte_tokenizer(), Glm4vVideoProcessor(), chat_template=GLM_CHAT)
    experts = dict(n_routed_experts=2, num_experts_per_tok=2, moe_intermediate_size=64, n_group=1, topk_group=1)
    return glm("glm4v_moe", processor, {**experts, "n_shared_experts": 1, "first_k_dense_replace": 1})


def lighton_ocr() -> Checkpoint:
    images = PixtralImageProcessor(patch_size=32, size={"longest_edge": 96})
    names = dict(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    processor = LightOnOcrProcessor(
        images, byte_tokenizer(**names), patch_size=16, spatial_merge_size=2, chat_template=chat("[IMG]")
    )
    return checkpoint(
        "lighton_ocr",
        processor,
        {"model_type": "qwen3", "head_dim": 32},
        vision_config={"model_type": "pixtral", **TOWER, "image_size": 96, "patch_size": 16, "head_dim": 32},
        image_token_id=token(processor, "[IMG]"),
        spatial_merge_size=2,
    )


LLAVA: dict[str, Any] = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)


def video_llava() -> Checkpoint:
    images = VideoLlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    processor = VideoLlavaProcessor(images, VideoLlavaVideoProcessor(), byte_tokenizer(), **LLAVA, chat_template=chat())
    return checkpoint(
        "video_llava",
        processor,
        {"model_type": "llama"},
        vision_config=CLIP,
        image_token_index=token(processor, "<image>"),
        video_token_index=token(processor, "<video>"),
    )


def llava_next_video() -> Checkpoint:
    pins = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    images = LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=pins)
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(), images, byte_tokenizer(), **LLAVA, chat_template=chat()
    )
    return checkpoint(
        "llava_next_video",
        processor,
        {"model_type": "llama"},
        vision_config=CLIP,
        image_token_index=token(processor, "<image>"),
        video_token_index=token(processor, "<video>"),
        image_grid_pinpoints=pins,
    )


def video_llama_3() -> Checkpoint:
    images = VideoLlama3ImageProcessor(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)
    processor = VideoLlama3Processor(
        images, byte_tokenizer(), VideoLlama3VideoProcessor(), chat_template=chat("<|image_pad|>")
    )
    return checkpoint(
        "video_llama_3",
        processor,
        {"model_type": "qwen2"},
        vision_config={**TOWER, "patch_size": 14},
        image_token_id=token(processor, "<|image_pad|>"),
        video_token_id=token(processor, "<|video_pad|>"),
    )


def paddleocr_vl() -> Checkpoint:
    images = PaddleOCRVLImageProcessor(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)
    processor = PaddleOCRVLProcessor(
        images,
        byte_tokenizer(image_token="<|image|>"),
        chat_template=chat("<|vision_start|><|image|><|vision_end|>"),
    )
    return checkpoint(
        "paddleocr_vl",
        processor,
        {"head_dim": 32, "rope_parameters": ROPE_3D},
        vision_config={**TOWER, "image_size": 112, "patch_size": 14},
        image_token_id=token(processor, "<|image|>"),
        vision_start_token_id=token(processor, "<|vision_start|>"),
        vision_end_token_id=token(processor, "<|vision_end|>"),
    )


def minicpm() -> Checkpoint:
    """Return MiniCPM-V 4.6, which cuts an image into slices and puts the patches of all in one row."""
    names = dict(image_token="<image>", video_token="<video>", image_start_token="<img>", image_end_token="</img>")
    names |= dict(slice_start_token="<slice>", slice_end_token="</slice>")
    names |= dict(image_id_start_token="<image_id>", image_id_end_token="</image_id>")
    images = MiniCPMV4_6ImageProcessor(scale_resolution=112, max_slice_nums=2)
    processor = MiniCPMV4_6Processor(images, MiniCPMV4_6VideoProcessor(), byte_tokenizer(**names), chat_template=chat())
    return checkpoint(
        "minicpmv4_6",
        processor,
        {"model_type": "qwen3_5_text", **LINEAR},
        vision_config={**TOWER, "image_size": 112, "patch_size": 14, "insert_layer_id": 0},
        insert_layer_id=0,
        image_token_id=token(processor, "<image>"),
        video_token_id=token(processor, "<video>"),
    )


def ovis2() -> Checkpoint:
    images = Ovis2ImageProcessor(size=SQUARE, crop_to_patches=False)
    processor = Ovis2Processor(images, byte_tokenizer(), chat_template=chat(), image_seq_length=4)
    vision = {**TOWER, "image_size": SIDE, "patch_size": 14, "hidden_stride": 2, "vocab_size": 128}
    marks = [token(processor, f"<IMG_{name}>") for name in ("START", "END", "GRID", "COL", "ROW")]
    return checkpoint(
        "ovis2",
        processor,
        {"model_type": "qwen2"},
        vision_config={**vision, "num_visual_indicator_tokens": 5},
        hidden_size=64,
        image_token_id=token(processor, "<IMG_ATOM>"),
        visual_indicator_token_ids=marks,
    )


THREE_D = {"head_dim": 32, "rope_parameters": ROPE_3D}
MAKERS: dict[str, Callable[[], Checkpoint]] = {
    "minicpmv4_6": minicpm,
    "ovis2": ovis2,
    "deepseek_vl": deepseek_vl,
    "janus": janus,
    "perception_lm": perception_lm,
    "cohere2_vision": cohere2_vision,
    "qwen3_vl_moe": partial(qwen_moe, "qwen3_vl_moe", THREE_D, deepstack_visual_indexes=[0]),
    "qwen3_5_moe": partial(
        qwen_moe,
        "qwen3_5_moe",
        {
            **LINEAR,
            "shared_expert_intermediate_size": 64,
            "rope_parameters": {**ROPE_3D, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25},
        },
    ),
    "glm46v": glm46v,
    "glm4v_moe": glm4v_moe,
    "lighton_ocr": lighton_ocr,
    "paddleocr_vl": paddleocr_vl,
    "video_llava": video_llava,
    "llava_next_video": llava_next_video,
    "video_llama_3": video_llama_3,
}
"""Architecture -> function that returns model and processor."""
