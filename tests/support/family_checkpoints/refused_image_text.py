"""Tiny checkpoints of families that read images and are refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    Blip2Processor,
    BlipImageProcessor,
    BlipProcessor,
    ChameleonImageProcessor,
    ChameleonProcessor,
    CLIPImageProcessor,
    Emu3ImageProcessor,
    Emu3Processor,
    Florence2Processor,
    FuyuImageProcessor,
    FuyuProcessor,
    GitProcessor,
    HunYuanVLImageProcessor,
    HunYuanVLProcessor,
    IdeficsImageProcessor,
    IdeficsProcessor,
    InstructBlipProcessor,
    Kosmos2Processor,
    Llama4ImageProcessor,
    Llama4Processor,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
    NemotronH_Omni_Reasoning_V3ImageProcessor,
    NemotronH_Omni_Reasoning_V3Processor,
    NemotronH_Omni_Reasoning_V3VideoProcessor,
    ParakeetFeatureExtractor,
    Pix2StructImageProcessor,
    Pix2StructProcessor,
)

from family_checkpoints.image_text import CLIP, SIDE, SQUARE, Checkpoint, checkpoint, token
from family_checkpoints.more_text import MORE_DECODERS, small_values
from family_checkpoints.parts import SIZES, TOWER, byte_tokenizer, chat, ids_of
from mllm.tiny.parts import random_model

VIT: dict[str, Any] = {**TOWER, "image_size": SIDE, "patch_size": 14}


def model_of(family: str, processor: Any, **values: Any) -> Checkpoint:
    """Return the model of a config with a processor, which has a chat template in any case."""
    config = AutoConfig.for_model(family, **values)
    processor.chat_template = chat()
    return random_model(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)], config, seed=0), processor


def text_values(processor: Any) -> dict[str, Any]:
    """Return the values of a language model."""
    return {**SIZES, **ids_of(processor.tokenizer)}


def blip_with_queries(family: str) -> Checkpoint:
    """Return BLIP-2 or InstructBLIP."""
    images, tokenizer = BlipImageProcessor(size=SQUARE), byte_tokenizer()
    processor: Any
    if family == "blip-2":
        processor = Blip2Processor(images, tokenizer, num_query_tokens=4)
    else:
        processor = InstructBlipProcessor(images, tokenizer, byte_tokenizer(), num_query_tokens=4)
    queries = {**TOWER, "cross_attention_frequency": 1, "encoder_hidden_size": 64}
    text = text_values(processor)
    return model_of(
        family,
        processor,
        vision_config=VIT,
        qformer_config={**queries, "vocab_size": text["vocab_size"]},
        text_config={"model_type": "opt", "ffn_dim": 128, "word_embed_proj_dim": 64, **text},
        num_query_tokens=4,
        image_token_index=token(processor, "<image>"),
    )


def blip() -> Checkpoint:
    processor = BlipProcessor(BlipImageProcessor(size=SQUARE), byte_tokenizer())
    text = {**text_values(processor), "encoder_hidden_size": 64, "is_decoder": True}
    return model_of("blip", processor, vision_config=VIT, text_config=text)


def emu3() -> Checkpoint:
    names = dict(image_token="<image>", boi_token="<img>", eoi_token="</img>", image_wrapper_token="<wrap>")
    tokenizer = byte_tokenizer(bos_token="<|endoftext|>", **names, eof_token="<eof>")
    processor = Emu3Processor(Emu3ImageProcessor(min_pixels=64 * 64, max_pixels=64 * 64), tokenizer)
    codes: dict[str, Any] = dict(codebook_size=64, embed_dim=8, z_channels=8, base_channels=32, hidden_size=32)
    codes |= dict(channel_multiplier=[1, 1, 1, 1], num_res_blocks=1, attn_resolutions=[], num_attention_heads=1)
    vocabulary = {f"<|visual token {number:06d}|>": number for number in range(64)}
    vocabulary["<image>"] = token(processor, "<image>")
    return model_of("emu3", processor, text_config=text_values(processor), vq_config=codes, vocabulary_map=vocabulary)


def chameleon() -> Checkpoint:
    images = ChameleonImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = byte_tokenizer(image_token="<image>", boi_token="<img>", eoi_token="</img>")
    processor = ChameleonProcessor(images, tokenizer, image_seq_length=4)
    codes: dict[str, Any] = dict(num_embeddings=64, embed_dim=8, latent_channels=8, base_channels=32, resolution=32)
    codes |= dict(channel_multiplier=[1, 1, 1, 1, 1], num_res_blocks=1)
    vocabulary = {f"IMGIMG{letter}Z": number for number, letter in enumerate("ABCDEFGHIJ")}
    vocabulary["<image>"] = token(processor, "<image>")
    return model_of("chameleon", processor, **text_values(processor), vq_config=codes, vocabulary_map=vocabulary)


def fuyu() -> Checkpoint:
    images = FuyuImageProcessor(size={"height": 60, "width": 60}, patch_size={"height": 30, "width": 30})
    processor = FuyuProcessor(images, byte_tokenizer())
    text = text_values(processor)
    return model_of(
        "fuyu", processor, **text, text_config={**text, "model_type": "persimmon"}, image_size=60, patch_size=30
    )


def florence2() -> Checkpoint:
    images = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    processor = Florence2Processor(images, byte_tokenizer(image_token="<image>"), num_additional_image_tokens=1)
    vision: dict[str, Any] = dict(depths=[1, 1], embed_dim=[32, 64], num_heads=[1, 2], num_groups=[1, 2])
    vision |= dict(patch_size=[7, 3], patch_stride=[4, 2], patch_padding=[3, 1], patch_prenorm=[False, True])
    text = {**small_values("bart", {}), **ids_of(processor.tokenizer), "model_type": "bart"}
    return model_of(
        "florence2", processor, text_config=text, vision_config={**vision, "window_size": 4, "projection_dim": 64}
    )


def kosmos2() -> Checkpoint:
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    processor = Kosmos2Processor(images, byte_tokenizer(), num_patch_index_tokens=4)
    text = dict(embed_dim=64, ffn_dim=128, layers=2, attention_heads=2, max_position_embeddings=512)
    text |= ids_of(processor.tokenizer)
    return model_of("kosmos-2", processor, text_config=text, vision_config=CLIP, latent_query_num=4)


def git() -> Checkpoint:
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    processor = GitProcessor(images, byte_tokenizer())
    return model_of("git", processor, vision_config=CLIP, **text_values(processor))


def pix2struct() -> Checkpoint:
    processor = Pix2StructProcessor(Pix2StructImageProcessor(max_patches=16), byte_tokenizer())
    vision = dict(hidden_size=64, patch_embed_hidden_size=64, d_ff=128, d_kv=32, num_hidden_layers=2)
    text = dict(hidden_size=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2, **ids_of(processor.tokenizer))
    return model_of(
        "pix2struct", processor, vision_config={**vision, "num_attention_heads": 2, "seq_len": 64}, text_config=text
    )


def llama4() -> Checkpoint:
    images = Llama4ImageProcessor(size=SQUARE, max_patches=1)
    processor = Llama4Processor(images, byte_tokenizer(), patch_size=14, chat_template=chat("<|image|>"))
    vision = dict(vision_output_dim=64, projector_input_dim=64, projector_output_dim=64)
    text = dict(head_dim=32, num_local_experts=2, intermediate_size_mlp=128, attention_chunk_size=2048)
    index = token(processor, "<|patch|>")
    return checkpoint(
        "llama4",
        processor,
        text,
        vision_config={**VIT, **vision, "intermediate_size": 256},
        image_token_index=index,
    )


def molmo2() -> Checkpoint:
    images = Molmo2ImageProcessor(max_crops=2, size=SQUARE, patch_size=14, overlap_margins=[1, 1])
    tokenizer = byte_tokenizer(image_token="<|image|>", video_token="<|video|>", bos_token="<|endoftext|>")
    processor = Molmo2Processor(images, Molmo2VideoProcessor(), tokenizer, chat_template=chat("<|image|>"))
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=32)
    adapter = dict(vision_feature_layer=[1], hidden_size=64, text_hidden_size=64, intermediate_size=128, **heads)
    vision = {**TOWER, **heads, "image_default_input_size": [SIDE, SIDE], "image_patch_size": 14, "image_num_pos": 16}
    index = token(processor, "<im_patch>")
    return checkpoint(
        "molmo2", processor, {"head_dim": 32}, vision_config=vision, adapter_config=adapter, image_patch_id=index
    )


def hunyuan_vl() -> Checkpoint:
    images = HunYuanVLImageProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96})
    names = dict(image_token="<image>", image_start_token="<im_start>", image_end_token="<im_end>")
    processor = HunYuanVLProcessor(images, byte_tokenizer(**names), chat_template=chat("<im_start><image><im_end>"))
    vision = {**TOWER, "num_key_value_heads": 2, "out_hidden_size": 64, "text_hidden_size": 64, "patch_size": 16}
    return checkpoint(
        "hunyuan_vl",
        processor,
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 1e4,
                "mrope_section": [4, 4, 4, 4],
                "factor": 1.0,
            },
        },
        vision_config={**vision, "max_image_size": 128, "min_image_size": 64},
        image_token_id=token(processor, "<image>"),
        im_start_id=token(processor, "<im_start>"),
        im_end_id=token(processor, "<im_end>"),
        im_newline_id=token(processor, "<im_col>"),
    )


def idefics() -> Checkpoint:
    processor = IdeficsProcessor(IdeficsImageProcessor(image_size=SIDE), byte_tokenizer(), image_size=SIDE)
    vision = {**TOWER, "embed_dim": 64, "image_size": SIDE, "patch_size": 14}
    return model_of("idefics", processor, vision_config=vision, **text_values(processor))


def nemotron_h_omni() -> Checkpoint:
    images = NemotronH_Omni_Reasoning_V3ImageProcessor(min_num_patches=4, max_num_patches=16)
    videos = NemotronH_Omni_Reasoning_V3VideoProcessor()
    processor = NemotronH_Omni_Reasoning_V3Processor(
        images, videos, byte_tokenizer(), ParakeetFeatureExtractor(), chat_template=chat()
    )
    text = small_values("nemotron_h", MORE_DECODERS["nemotron_h"])
    vision = dict(model_type="radio", mlp_ratio=2.0, max_img_size=256, video_temporal_patch_size=2)
    return checkpoint(
        "nemotron_h_omni",
        processor,
        {"model_type": "nemotron_h", **text},
        vision_config={**TOWER, **vision},
        projector_hidden_size=64,
        vision_hidden_size=64,
        image_token_id=token(processor, "<image>"),
        video_token_id=token(processor, "<video>"),
    )


def mistral4() -> Checkpoint:
    """Return the language model of Mistral 4, which transformers lists among the models that read images."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat()
    config = AutoConfig.for_model("mistral4", **small_values("mistral4", ids_of(tokenizer)))
    return random_model(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)], config, seed=0), tokenizer


CANNOT_BE_FOUND = "cannot be found among its parts"
OWN_PLACEMENT = "writes the tokens of one image before the text"
UNKNOWN_OUTPUT = "it is not known whether this belongs to a token, an image or a sample"
NO_TYPE = "no type trains encoder-decoders of this kind"
REFUSED: dict[str, tuple[Callable[[], Checkpoint], str]] = {
    "instructblip": (partial(blip_with_queries, "instructblip"), OWN_PLACEMENT),
    "blip-2": (partial(blip_with_queries, "blip-2"), OWN_PLACEMENT),
    "blip": (blip, "has no output layer of its own"),
    "nemotron_h_omni": (nemotron_h_omni, "has no output layer of its own"),
    "idefics": (idefics, CANNOT_BE_FOUND),
    "mistral4": (mistral4, "has a tokenizer but no image processor"),
    "emu3": (emu3, CANNOT_BE_FOUND),
    "chameleon": (chameleon, CANNOT_BE_FOUND),
    "fuyu": (fuyu, CANNOT_BE_FOUND),
    "git": (git, CANNOT_BE_FOUND),
    "florence2": (florence2, NO_TYPE),
    "pix2struct": (pix2struct, NO_TYPE),
    "kosmos-2": (kosmos2, UNKNOWN_OUTPUT),
    "molmo2": (molmo2, UNKNOWN_OUTPUT),
    "llama4": (llama4, "fails on the first batch"),
    "hunyuan_vl": (hunyuan_vl, "numbers the images of all samples of a batch together"),
}
"""Architecture -> function that returns model and processor, and a part of the sentence that refuses it."""
BY_CONFIG = {
    **dict.fromkeys(("vision-encoder-decoder", "udop", "pp_formulanet"), NO_TYPE),
    **dict.fromkeys(("instructblipvideo", "kosmos-2.5"), OWN_PLACEMENT),
    "shieldgemma2": "writes its own question about each policy",
    "evolla": "reads proteins, and no images",
    "pi0": "writes the movements of a robot, and no text",
    "diffusion_gemma": "writes blocks of tokens by diffusion",
}
"""Architecture -> a part of the sentence that refuses it by its config."""
