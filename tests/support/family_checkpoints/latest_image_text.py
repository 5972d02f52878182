"""Tiny checkpoints of the latest families that read images and train, each with its own processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import (
    CohereCompassImageProcessor,
    CohereCompassProcessor,
    CohereCompassVideoProcessor,
    Cosmos3EdgeImageProcessor,
    Cosmos3EdgeProcessor,
    Cosmos3EdgeVideoProcessor,
    DeepseekOcr2ImageProcessor,
    DeepseekOcr2Processor,
    Dots3NoteProcessor,
    Glm5NextImageProcessor,
    Glm5NextProcessor,
    Glm5NextVideoProcessor,
    Glm46VProcessor,
    GlmgaImageProcessor,
    GlmgaVideoProcessor,
    GPT2Tokenizer,
    HyperCLOVAXVisionV2Processor,
    Inkling2ImageProcessor,
    Inkling2Processor,
    InklingFeatureExtractor,
    InklingImageProcessor,
    InklingProcessor,
    MiniCPMOcrImageProcessor,
    MiniCPMOcrProcessor,
    MiniCPMOcrVideoProcessor,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6VideoProcessor,
    MiniCPMV4_7Processor,
    MuseGlimmerImageProcessor,
    MuseGlimmerProcessor,
    MuseGlimmerVideoProcessor,
    MuseSparkFeatureExtractor,
    MuseSparkProcessor,
    PPChart2TableImageProcessor,
    PPChart2TableProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    UnlimitedOcrImageProcessor,
    UnlimitedOcrProcessor,
    WhisperFeatureExtractor,
)

from family_checkpoints.image_text import QWEN_CHAT, ROPE_3D, Checkpoint, checkpoint, qwen_ids, token
from family_checkpoints.more_image_text import GLM_CHAT, GLM_SIZE, LINEAR, QWEN_TOWER
from family_checkpoints.more_text import MORE_DECODERS
from family_checkpoints.newer_image_text import QWEN_SIZE, SAM
from family_checkpoints.parts import SIZES, TOWER, byte_tokenizer, chat, ids_of
from family_checkpoints.small import small_values

SIZE_16 = {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 16}
"""Pixels of an image in patches of 16, merged by 2."""
TOWER_16: dict[str, Any] = {**QWEN_TOWER, "num_position_embeddings": 64}
GLM_IDS = dict(
    image_token="<|image|>",
    video_token="<|video|>",
    image_start_token="<|begin_of_image|>",
    image_end_token="<|end_of_image|>",
)


def ids(processor: Any, names: dict[str, str]) -> dict[str, int]:
    """Return the ids of tokens under their names in a config."""
    return {f"{name}_id": token(processor, text) for name, text in names.items()}


def cohere_compass() -> Checkpoint:
    names = {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>"}
    names |= {"vision_start_token": "<|VISION_START|>", "vision_end_token": "<|VISION_END|>"}
    processor = CohereCompassProcessor(
        CohereCompassImageProcessor(size=SIZE_16, patch_size=16),
        byte_tokenizer(**names),
        CohereCompassVideoProcessor(),
        chat_template=chat("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
    )
    return checkpoint(
        "cohere_compass",
        processor,
        MORE_DECODERS["cohere_compass_text"],
        vision_config={**TOWER_16, "deepstack_visual_indexes": [0]},
        **ids(processor, names),
    )


def cosmos3_edge() -> Checkpoint:
    images, videos = Cosmos3EdgeImageProcessor(size=SIZE_16), Cosmos3EdgeVideoProcessor()
    processor = Cosmos3EdgeProcessor(images, byte_tokenizer(), videos, chat_template=QWEN_CHAT)
    return checkpoint(
        "cosmos3_edge",
        processor,
        {"head_dim": 32, "rope_parameters": ROPE_3D},
        vision_config={**TOWER, "num_patches": 64},
        projector_hidden_size=64,
        **qwen_ids(processor),
    )


def qwen(family: str, text: dict[str, Any], **vision: Any) -> Checkpoint:
    """Return a model with the processor of Qwen3-VL."""
    images = Qwen2VLImageProcessor(size=SIZE_16, patch_size=16)
    processor = Qwen3VLProcessor(images, byte_tokenizer(), Qwen3VLVideoProcessor(), chat_template=QWEN_CHAT)
    text = {**text, "rope_parameters": ROPE_3D}
    return checkpoint(family, processor, text, vision_config={**TOWER_16, **vision}, **qwen_ids(processor))


def qwen4_exp() -> Checkpoint:
    return qwen("qwen4_exp", small_values("qwen4_exp_text", MORE_DECODERS["qwen4_exp_text"]))


def cosmos3_omni() -> Checkpoint:
    text = {"model_type": "qwen3_vl_text", "head_dim": 32}
    return qwen("cosmos3_omni", text, model_type="qwen3_vl_vision", deepstack_visual_indexes=[0])


def unlimited_ocr() -> Checkpoint:
    square = {"height": 64, "width": 64}
    images = UnlimitedOcrImageProcessor(size=square, tile_size=64, crop_to_patches=False)
    tokenizer = byte_tokenizer(image_token="<image>")
    processor = UnlimitedOcrProcessor(images, tokenizer, chat_template=chat(), patch_size=16)
    text = dict(head_dim=32, num_key_value_heads=2, n_routed_experts=2, n_shared_experts=1, num_experts_per_tok=2)
    text |= dict(moe_intermediate_size=64, mlp_layer_types=["dense", "sparse"])
    text |= dict(layer_types=["reference_sliding_attention"] * 2)
    towers = dict(sam_config={**SAM, "downsample_channels": [64, 64]})
    towers |= dict(encoder_config={**TOWER, "image_size": 64, "patch_size": 16})
    index = token(processor, "<image>")
    return checkpoint("unlimited_ocr", processor, text, vision_config=towers, image_token_id=index)


def deepseek_ocr2() -> Checkpoint:
    """Return DeepSeek-OCR 2, which has 144 queries for the 48 x 48 patches of an image, halved twice."""
    square = {"height": 48, "width": 48}
    images = DeepseekOcr2ImageProcessor(size=square, tile_size=48)
    tokenizer = byte_tokenizer(image_token="<image>")
    processor = DeepseekOcr2Processor(images, tokenizer, chat_template=chat(), patch_size=1)
    text = dict(head_dim=32, num_key_value_heads=2, n_routed_experts=2, n_shared_experts=1, num_experts_per_tok=2)
    text |= dict(moe_intermediate_size=64, mlp_layer_types=["dense", "sparse"], n_group=1, topk_group=1)
    sam = {**SAM, "image_size": 48, "patch_size": 1, "window_size": 8, "downsample_channels": [64, 64]}
    towers = dict(sam_config={**sam, "global_attn_indexes": []}, encoder_config={**SIZES, "num_key_value_heads": 2})
    index = token(processor, "<image>")
    return checkpoint("deepseek_ocr2", processor, text, vision_config=towers, image_token_id=index)


def glm5_next() -> Checkpoint:
    images = Glm5NextImageProcessor(min_image_tokens=4, max_image_tokens=16)
    processor = Glm5NextProcessor(images, byte_tokenizer(), Glm5NextVideoProcessor(), chat_template=GLM_CHAT)
    text = dict(qk_rope_head_dim=0, head_dim=0, qk_nope_head_dim=32, v_head_dim=32, hc_mult=2)
    text |= dict(linear_head_dim=32, linear_num_heads=2)
    return checkpoint(
        "glm5_next",
        processor,
        small_values("glm5_next_text", text),
        vision_config={**QWEN_TOWER, "image_size": 56, "projection_intermediate_size": 64},
        **ids(processor, GLM_IDS),
    )


def glmga() -> Checkpoint:
    images = GlmgaImageProcessor(size=GLM_SIZE)
    processor = Glm46VProcessor(images, byte_tokenizer(), GlmgaVideoProcessor(), chat_template=GLM_CHAT)
    rope = {**ROPE_3D, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    return checkpoint(
        "glmga",
        processor,
        {"model_type": "glm4v_text", "rope_parameters": rope},
        vision_config={"model_type": "glm4v_vision", **QWEN_TOWER, "image_size": 56},
        **ids(processor, GLM_IDS),
    )


def hyperclovax_vision_v2() -> Checkpoint:
    """Return HyperCLOVA X Vision, whose tokenizer transformers loads as that of GPT-2."""
    images = Qwen2VLImageProcessor(size=QWEN_SIZE)
    tokenizer = byte_tokenizer(kind=GPT2Tokenizer)
    processor = HyperCLOVAXVisionV2Processor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=QWEN_CHAT)
    return checkpoint(
        "hyperclovax_vision_v2",
        processor,
        {"model_type": "hyperclovax", "head_dim": 32},
        vision_config={"model_type": "qwen2_5_vl_vision", **QWEN_TOWER, "window_size": 56}
        | {"fullatt_block_indexes": [1]},
        image_token_id=token(processor, "<|image_pad|>"),
        video_token_id=token(processor, "<|video_pad|>"),
    )


def inkling2() -> Checkpoint:
    tokenizer = byte_tokenizer(image_token="<|image|>")
    processor = Inkling2Processor(Inkling2ImageProcessor(), tokenizer, chat_template=chat("<|image|>"))
    text = small_values("inkling2_text", {"unpadded_vocab_size": ids_of(tokenizer)["vocab_size"]})
    vision = {**TOWER, "posemb_grid_size": 8, "projection_hidden_dim": 64, "text_hidden_size": 64}
    index = token(processor, "<|image|>")
    return checkpoint("inkling2", processor, text, vision_config=vision, image_token_id=index)


def inkling() -> Checkpoint:
    names = dict(image_token="<|image|>", audio_token="<|python_tag|>")
    starts = dict(image_bos_token="<|image_start|>", audio_bos_token="<|image_end|>")
    processor = InklingProcessor(
        InklingFeatureExtractor(),
        InklingImageProcessor(),
        byte_tokenizer(**names),
        chat_template=chat("<|image|>"),
        **starts,
    )
    return checkpoint(
        "inkling_mm_model",
        processor,
        small_values("inkling_text", {}),
        vision_config={"hidden_size": 64, "n_layers": 2, "num_attention_heads": 2, "text_hidden_size": 64},
        audio_config={"text_hidden_size": 64},
        **ids(processor, {**names, **starts}),
    )


def minicpm(family: str, images: Any, kind: Any, videos: Any) -> Checkpoint:
    """Return MiniCPM-V 4.7, or MiniCPM-OCR, which does not merge patches inside its vision tower."""
    names = dict(image_token="<image>", video_token="<video>", image_start_token="<img>", image_end_token="</img>")
    names |= dict(slice_start_token="<slice>", slice_end_token="</slice>")
    names |= dict(image_id_start_token="<image_id>", image_id_end_token="</image_id>")
    processor = kind(
        images(scale_resolution=112, max_slice_nums=2), videos(), byte_tokenizer(**names), chat_template=chat()
    )
    return checkpoint(
        family,
        processor,
        {"model_type": "qwen3_5_text", **LINEAR},
        vision_config={**TOWER, "image_size": 112, "patch_size": 14, "insert_layer_id": 0},
        insert_layer_id=0,
        image_token_id=token(processor, "<image>"),
        video_token_id=token(processor, "<video>"),
    )


def muse(family: str) -> Checkpoint:
    images, videos = MuseGlimmerImageProcessor(max_image_tokens=16), MuseGlimmerVideoProcessor()
    names = dict(video_sep_token="<|vid_frame_separator|>", video_start_token="<|vid_start|>")
    names |= dict(video_end_token="<|vid_end|>", audio_token="<|audio|>")
    tokenizer = byte_tokenizer(**names)
    options: dict[str, Any] = dict(chat_template=chat("<|image_start|><|patch|><|image_end|>"))
    audio: dict[str, Any] = {}
    processor: Any
    if family == "muse_glimmer":
        processor, text = MuseGlimmerProcessor(images, videos, tokenizer, **options), small_values(f"{family}_text", {})
    else:
        processor = MuseSparkProcessor(images, videos, tokenizer, MuseSparkFeatureExtractor(), **options)
        text = small_values(f"{family}_text", {"moe_hidden_size": 64})
        sizes: dict[str, Any] = dict(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_hidden_size=64)
        audio = dict(audio_config=sizes, audio_token_id=token(processor, "<|audio|>"))
    kinds = ["window_attention", "full_attention"]
    return checkpoint(
        family,
        processor,
        text,
        vision_config={**TOWER, "pos_emb_height": 8, "pos_emb_width": 8, "layer_types": kinds},
        out_hidden_size=256,
        projector_hidden_size=64,
        image_token_id=token(processor, "<|patch|>"),
        video_token_id=token(processor, "<|video|>"),
        **audio,
    )


def pp_chart2table() -> Checkpoint:
    """Return PP-Chart2Table, whose template writes all tokens of an image: 64 x 64 patches, halved twice."""
    images = PPChart2TableImageProcessor(size={"height": 256, "width": 256})
    processor = PPChart2TableProcessor(images, byte_tokenizer(), chat_template=chat("<imgpad>" * 256))
    return checkpoint(
        "pp_chart2table",
        processor,
        {"model_type": "qwen2"},
        vision_config={**SAM, "image_size": 256, "patch_size": 4, "window_size": 8, "global_attn_indexes": []},
        image_token_index=token(processor, "<imgpad>"),
        image_seq_length=4,
    )


def dots3_note() -> Checkpoint:
    names = dict(image_token="<|imgpad|>", video_token="<|video_pad|>", audio_token="<|audio_comp_pad|>")
    processor = Dots3NoteProcessor(
        Qwen2VLImageProcessor(size=QWEN_SIZE, temporal_patch_size=1),
        byte_tokenizer(**names),
        Qwen3VLVideoProcessor(),
        WhisperFeatureExtractor(feature_size=128),
        chat_template=chat("<|imgpad|>"),
    )
    vision: dict[str, Any] = dict(moe_intermediate_size=64, mlp_layer_types=["dense", "sparse"], num_local_experts=2)
    vision |= dict(adapter_in_dim=64, adapter_out_dim=64, per_layer_config={})
    audio = dict(num_key_value_heads=2, head_dim=32, adapter_input_size=64, adapter_out_dim=64)
    audio |= dict(downsample_hidden_size=8, conv_output_size=128)
    return checkpoint(
        "dots3_note",
        processor,
        small_values("dots3_note_text", {}),
        vision_config={**TOWER, **vision},
        audio_config={**TOWER, **audio},
        **ids(processor, names),
    )


MAKERS: dict[str, Callable[[], Checkpoint]] = {
    "cohere_compass": cohere_compass,
    "cosmos3_edge": cosmos3_edge,
    "cosmos3_omni": cosmos3_omni,
    "qwen4_exp": qwen4_exp,
    "deepseek_ocr2": deepseek_ocr2,
    "unlimited_ocr": unlimited_ocr,
    "glm5_next": glm5_next,
    "glmga": glmga,
    "hyperclovax_vision_v2": hyperclovax_vision_v2,
    "inkling2": inkling2,
    "inkling_mm_model": inkling,
    "minicpmv4_7": partial(
        minicpm, "minicpmv4_7", MiniCPMV4_6ImageProcessor, MiniCPMV4_7Processor, MiniCPMV4_6VideoProcessor
    ),
    "minicpm_ocr": partial(
        minicpm, "minicpm_ocr", MiniCPMOcrImageProcessor, MiniCPMOcrProcessor, MiniCPMOcrVideoProcessor
    ),
    "muse_glimmer": partial(muse, "muse_glimmer"),
    "muse_spark": partial(muse, "muse_spark"),
    "pp_chart2table": pp_chart2table,
    "dots3_note": dots3_note,
}
"""Architecture -> function that returns model and processor."""
