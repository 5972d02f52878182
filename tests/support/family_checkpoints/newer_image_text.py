"""Tiny checkpoints of newer families that read images and train, each with its own processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import (
    AriaImageProcessor,
    AriaProcessor,
    CLIPImageProcessor,
    DeepseekVLHybridImageProcessor,
    DeepseekVLHybridProcessor,
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Ernie4_5_VLMoeVideoProcessor,
    Exaone4_5_Processor,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    GotOcr2ImageProcessor,
    GotOcr2Processor,
    Granite4VisionProcessor,
    GraniteDoclingImageProcessor,
    GraniteDoclingProcessor,
    Kimi_K25ImageProcessor,
    Kimi_K25Processor,
    Kimi_K25VideoProcessor,
    Lfm3VlProcessor,
    LlavaNextImageProcessor,
    LlavaProcessor,
    MiniMaxM3VLImageProcessor,
    MiniMaxM3VLProcessor,
    MiniMaxM3VLVideoProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    QianfanOCRProcessor,
    Qwen2_5OmniProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3OmniMoeProcessor,
    Step3p7ImageProcessor,
    Step3p7Processor,
    WhisperFeatureExtractor,
)

from family_checkpoints.image_text import QWEN_CHAT, ROPE_3D, SIDE, SIGLIP, SQUARE, Checkpoint, checkpoint, token
from family_checkpoints.more_image_text import EXPERTS, GLM_CHAT, GLM_SIZE, QWEN_TOWER
from family_checkpoints.parts import TOWER, byte_tokenizer, chat

SLIDING = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
QWEN_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16}
SAM: dict[str, Any] = {**TOWER, "output_channels": 64, "image_size": 64, "patch_size": 16, "window_size": 2}
SAM |= {"mlp_dim": 128, "global_attn_indexes": [1]}


def got_ocr2() -> Checkpoint:
    """Return GOT-OCR 2, whose processor writes 256 tokens for each image: 64 x 64 patches, halved twice."""
    images = GotOcr2ImageProcessor(size={"height": 256, "width": 256})
    processor = GotOcr2Processor(images, byte_tokenizer(), chat_template=chat("<imgpad>"))
    return checkpoint(
        "got_ocr2",
        processor,
        {"model_type": "qwen2"},
        vision_config={**SAM, "image_size": 256, "patch_size": 4, "window_size": 8, "global_attn_indexes": []},
        image_token_index=token(processor, "<imgpad>"),
        image_seq_length=4,
    )


def aria() -> Checkpoint:
    """Return Aria, whose processor makes images of 980 pixels."""
    images = AriaImageProcessor()
    processor = AriaProcessor(
        images, byte_tokenizer(image_token="<image>"), chat_template=chat(), size_conversion={980: 4}
    )
    return checkpoint(
        "aria",
        processor,
        dict(moe_num_experts=2, moe_topk=2, moe_num_shared_experts=1, head_dim=32),
        vision_config={"model_type": "idefics3_vision", **TOWER, "image_size": 980, "patch_size": 140},
        projector_patch_to_query_dict={49: 4},
        image_token_index=token(processor, "<image>"),
    )


def granite4_vision() -> Checkpoint:
    pins = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    images = LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=pins)
    processor = Granite4VisionProcessor(
        images,
        byte_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        downsample_rate="2/4",
        chat_template=chat(),
    )
    queries = dict(**TOWER, encoder_hidden_size=64, cross_attention_frequency=1)
    return checkpoint(
        "granite4_vision",
        processor,
        dict(logits_scaling=4.0, embedding_multiplier=2.0),
        vision_config=SIGLIP,
        qformer_config={**queries, "num_hidden_layers": 1},
        downsample_rate="2/4",
        deepstack_layer_map=[[-1, 0]],
        spatial_target_layers=[1, 1, 1, 1],
        spatial_vision_layer=-1,
        vision_feature_select_strategy="full",
        projector_dropout=0.0,
        image_token_index=token(processor, "<image>"),
        image_grid_pinpoints=pins,
    )


def granite_docling() -> Checkpoint:
    images = GraniteDoclingImageProcessor(size=SQUARE, max_patches=2)
    processor = GraniteDoclingProcessor(images, byte_tokenizer(), image_seq_len=4, chat_template=chat())
    vision = {**TOWER, "image_size": SIDE, "patch_size": 14, "scale_factor": 2, "out_hidden_size": 64}
    return checkpoint(
        "granite_docling",
        processor,
        dict(logits_scaling=4.0),
        vision_config={**vision, "deepstack_visual_indexes": [0]},
        image_token_id=token(processor, "<image>"),
    )


def glm_ocr() -> Checkpoint:
    images = Glm46VImageProcessor(size=GLM_SIZE)
    processor = Glm46VProcessor(images, byte_tokenizer(), Glm46VVideoProcessor(), chat_template=GLM_CHAT)
    return checkpoint(
        "glm_ocr",
        processor,
        {"rope_parameters": {**ROPE_3D, "mrope_section": [4, 6, 6]}, "head_dim": 32},
        vision_config={**QWEN_TOWER, "image_size": 56},
        image_token_id=token(processor, "<|image|>"),
        video_token_id=token(processor, "<|video|>"),
        image_start_token_id=token(processor, "<|begin_of_image|>"),
        image_end_token_id=token(processor, "<|end_of_image|>"),
    )


def deepseek_vl_hybrid() -> Checkpoint:
    images = DeepseekVLHybridImageProcessor(size=SQUARE, min_size=14, high_res_size={"height": 64, "width": 64})
    tokenizer = byte_tokenizer(image_token="<image>")
    processor = DeepseekVLHybridProcessor(images, tokenizer, chat_template=chat(), num_image_tokens=16)
    return checkpoint(
        "deepseek_vl_hybrid",
        processor,
        {"model_type": "llama"},
        vision_config=SIGLIP,
        high_res_vision_config={**SAM, "model_type": "sam_vision_model", "scale": 32, "num_pos_feats": 32},
        image_token_id=token(processor, "<image>"),
    )


def fast_vlm() -> Checkpoint:
    images = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor = LlavaProcessor(
        images,
        byte_tokenizer(),
        patch_size=64,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=chat(),
    )
    vision: dict[str, Any] = dict(architecture="fastvit_mci3", do_pooling=True, global_pool="avg", hidden_size=64)
    layers = dict(layers=[1, 1, 1, 1, 1], embed_dims=[8, 16, 32, 32, 32], mlp_ratios=[1, 1, 1, 1, 1])
    return checkpoint(
        "fast_vlm",
        processor,
        {"model_type": "qwen2"},
        vision_config={**vision, "model_type": "timm_wrapper", "model_args": {"inference_mode": True, **layers}},
        image_token_index=token(processor, "<image>"),
    )


def exaone4_5() -> Checkpoint:
    images = Qwen2VLImageProcessor(size=QWEN_SIZE)
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    processor = Exaone4_5_Processor(images, byte_tokenizer(**names), Qwen2VLVideoProcessor(), chat_template=QWEN_CHAT)
    ids = {f"{name}_id": token(processor, names[name]) for name in names}
    vision = {**QWEN_TOWER, "num_key_value_heads": 2, **WINDOWS}
    return checkpoint("exaone4_5", processor, {"model_type": "exaone4", **SLIDING}, vision_config=vision, **ids)


WINDOWS = {"window_size": 56, "fullatt_block_indexes": [1]}


def lfm3_vl() -> Checkpoint:
    images = Qwen2VLImageProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 16}, patch_size=16)
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    names |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    processor = Lfm3VlProcessor(images, byte_tokenizer(**names), Qwen2VLVideoProcessor(), chat_template=QWEN_CHAT)
    kinds = ["conv", "full_attention"]
    rope = dict.fromkeys(("sliding_attention", "full_attention"), {"rope_type": "default", "rope_theta": 1e4})
    return checkpoint(
        "lfm3_vl",
        processor,
        {"layer_types": ["conv", "sliding_attention", "full_attention"], "num_hidden_layers": 3, "sliding_window": 64}
        | {"head_dim": 32, "rope_parameters": rope},
        vision_config={**TOWER, "num_key_value_heads": 2, "layer_types": kinds},
        projector_hidden_size=64,
        image_token_id=token(processor, "<|image_pad|>"),
        video_token_id=token(processor, "<|video_pad|>"),
        vision_start_token_id=token(processor, "<|vision_start|>"),
        vision_end_token_id=token(processor, "<|vision_end|>"),
    )


OMNI: dict[str, str] = dict(
    image_token="<|image_pad|>",
    video_token="<|video_pad|>",
    audio_token="<|python_tag|>",
    vision_bos_token="<|vision_start|>",
    vision_eos_token="<|vision_end|>",
    audio_bos_token="<|image_start|>",
    audio_eos_token="<|image_end|>",
)
AUDIO: dict[str, Any] = dict(encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64, d_model=64)


def omni(family: str, kind: Any, text: dict[str, Any], vision: dict[str, Any], audio: dict[str, Any]) -> Checkpoint:
    """Return the part of a Qwen Omni that reads and writes text."""
    patch = 14 if "2_5" in family else 16
    images = Qwen2VLImageProcessor(
        size={"shortest_edge": (4 * patch) ** 2, "longest_edge": (8 * patch) ** 2}, patch_size=patch
    )
    processor = kind(
        image_processor=images,
        video_processor=Qwen2VLVideoProcessor(),
        feature_extractor=WhisperFeatureExtractor(feature_size=128),
        tokenizer=byte_tokenizer(**OMNI),
        chat_template=QWEN_CHAT,
    )
    suffix = "index" if "2_5" in family else "id"
    return checkpoint(
        family,
        processor,
        text,
        vision_config={**QWEN_TOWER, **vision},
        audio_config={**AUDIO, "output_dim": 64, **audio},
        **{f"{name}_token_{suffix}": token(processor, OMNI[f"{name}_token"]) for name in ("image", "video", "audio")},
        audio_start_token_id=token(processor, OMNI["audio_bos_token"]),
        vision_start_token_id=token(processor, "<|vision_start|>"),
    )


def ernie4_5_vl_moe() -> Checkpoint:
    images = Ernie4_5_VLMoeImageProcessor(size=QWEN_SIZE)
    names = dict(image_token="<|image_pad|>", image_start_token="<img>", image_end_token="</img>")
    names |= dict(video_token="<|video_pad|>", video_start_token="<|vision_start|>", video_end_token="<|vision_end|>")
    processor = Ernie4_5_VLMoeProcessor(
        images,
        byte_tokenizer(**names),
        Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False),
        chat_template=chat("<img><|image_pad|></img>"),
    )
    experts = dict(moe_intermediate_size=[64, 64], moe_k=2, moe_num_experts=2, moe_num_shared_experts=1)
    return checkpoint(
        "ernie4_5_vl_moe",
        processor,
        {**experts, "mlp_layer_types": ["dense", "sparse"], "rope_parameters": {**ROPE_3D, "mrope_section": [6, 6, 4]}},
        vision_config={key: value for key, value in QWEN_TOWER.items() if key != "out_hidden_size"},
        **{f"{name}_id": token(processor, value) for name, value in names.items()},
    )


def kimi_k25() -> Checkpoint:
    images = Kimi_K25ImageProcessor(size={"max_height": 112, "max_width": 112}, max_patches=64)
    names = dict(image_token="<|image_pad|>", video_token="<|video_pad|>")
    processor = Kimi_K25Processor(images, byte_tokenizer(**names), Kimi_K25VideoProcessor(), chat_template=QWEN_CHAT)
    text = dict(kv_lora_rank=32, q_lora_rank=32, qk_rope_head_dim=16, v_head_dim=32, qk_nope_head_dim=16, head_dim=16)
    text |= dict(n_routed_experts=2, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1)
    text |= dict(moe_intermediate_size=64, num_nextn_predict_layers=0, num_key_value_heads=2)
    return checkpoint(
        "kimi_k25",
        processor,
        {"model_type": "deepseek_v3", **text},
        vision_config={**TOWER, "pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=64,
        image_token_id=token(processor, "<|image_pad|>"),
        video_token_id=token(processor, "<|video_pad|>"),
        vision_start_token_id=token(processor, "<|vision_start|>"),
        vision_end_token_id=token(processor, "<|vision_end|>"),
    )


def qianfan_ocr() -> Checkpoint:
    images = GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=2)
    names = dict(start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>")
    processor = QianfanOCRProcessor(
        images, byte_tokenizer(**names), image_seq_length=4, chat_template=chat(), image_placeholder_token="<image>"
    )
    return checkpoint(
        "qianfan_ocr",
        processor,
        {"model_type": "qwen3", "head_dim": 32},
        vision_config={**TOWER, "image_size": [SIDE, SIDE], "patch_size": [14, 14], "drop_path_rate": 0.0},
        image_token_id=token(processor, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )


def minimax_m3_vl() -> Checkpoint:
    images = MiniMaxM3VLImageProcessor(size=QWEN_SIZE)
    names = dict(image_token="]<]image[>[", video_token="]<]video[>[")
    names |= dict(start_token="]<]start of image[>[", end_token="]<]end of image[>[")
    processor = MiniMaxM3VLProcessor(
        images, byte_tokenizer(**names), MiniMaxM3VLVideoProcessor(), chat_template=chat("]<]image[>[")
    )
    text = dict(head_dim=32, num_experts_per_tok=2, num_local_experts=2, dense_intermediate_size=128, rotary_dim=16)
    return checkpoint(
        "minimax_m3_vl",
        processor,
        {**text, "shared_intermediate_size": 64, "mlp_layer_types": ["dense", "sparse"]}
        | {"index_n_heads": 2, "index_head_dim": 32},
        vision_config={**TOWER, "image_size": 112},
        projector_hidden_size=64,
        merged_hidden_size=256,
        image_token_index=token(processor, names["image_token"]),
        video_token_index=token(processor, names["video_token"]),
    )


def step3p7() -> Checkpoint:
    images = Step3p7ImageProcessor(size={"height": 112, "width": 112}, patch_size=56, max_image_size=224)
    processor = Step3p7Processor(images, byte_tokenizer(image_token="<im_patch>"), chat_template=chat("<im_patch>"))
    text = dict(head_dim=32, num_experts_per_tok=2, n_routed_experts=2, moe_intermediate_size=64, share_expert_dim=64)
    text |= dict(mlp_layer_types=["dense", "sparse"], query_pre_attn_scalar=32, num_sliding_attention_heads=2)
    text |= SLIDING
    vision = {**TOWER, "image_size": 112, "patch_size": 14, "mlp_ratio": 2.0, "max_position_embeddings": 64}
    return checkpoint("step3p7", processor, text, vision_config=vision, image_token_id=token(processor, "<im_patch>"))


def mistral_large4() -> Checkpoint:
    images = PixtralImageProcessor(patch_size=32, size={"longest_edge": 96})
    processor = PixtralProcessor(
        images, byte_tokenizer(), patch_size=16, spatial_merge_size=2, chat_template=chat("[IMG]")
    )
    vision = {"model_type": "pixtral", **TOWER, "image_size": 96, "patch_size": 16, "head_dim": 32}
    text = dict(n_routed_experts=2, num_experts_per_tok=2, moe_intermediate_size=64, num_key_value_heads=2)
    text |= dict(kv_lora_rank=32, q_lora_rank=32, qk_rope_head_dim=16, v_head_dim=32, qk_nope_head_dim=16)
    return checkpoint(
        "mistral_large4", processor, text, vision_config=vision, image_token_index=token(processor, "[IMG]")
    )


THREE_D = {"rope_parameters": ROPE_3D}
MAKERS: dict[str, Callable[[], Checkpoint]] = {
    "got_ocr2": got_ocr2,
    "aria": aria,
    "granite4_vision": granite4_vision,
    "granite_docling": granite_docling,
    "glm_ocr": glm_ocr,
    "deepseek_vl_hybrid": deepseek_vl_hybrid,
    "fast_vlm": fast_vlm,
    "exaone4_5": exaone4_5,
    "lfm3_vl": lfm3_vl,
    "qwen2_5_omni_thinker": partial(
        omni, "qwen2_5_omni_thinker", Qwen2_5OmniProcessor, THREE_D, WINDOWS, {"n_window": 10}
    ),
    "qwen3_omni_moe_thinker": partial(
        omni,
        "qwen3_omni_moe_thinker",
        Qwen3OmniMoeProcessor,
        {**THREE_D, **EXPERTS, "head_dim": 32},
        {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        {"downsample_hidden_size": 16},
    ),
    "ernie4_5_vl_moe": ernie4_5_vl_moe,
    "kimi_k25": kimi_k25,
    "qianfan_ocr": qianfan_ocr,
    "minimax_m3_vl": minimax_m3_vl,
    "step3p7": step3p7,
    "mistral_large4": mistral_large4,
}
"""Architecture -> function that returns model and processor."""
