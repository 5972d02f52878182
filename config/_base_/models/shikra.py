"""Shikra (arXiv:2306.15195): a LLaMA and a CLIP connected by a projector, with boxes as numbers in the text."""

model_args = dict(
    type="shikra",
    model_name_or_path="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    vision_tower="openai/clip-vit-large-patch14",  # None if model_name_or_path is a LLaVA
    mm_vision_select_layer=-2,
    pretrain_mm_mlp_adapter=None,
    freeze_backbone=False,
    tune_mm_mlp_adapter=False,
    freeze_mm_mlp_adapter=False,
    box_format=dict(type="normalized_text", precision=3),
    adapter_path=None,
    load_in_4bit=False,
    load_in_8bit=False,
    lora_r=16,
    lora_alpha=None,  # equal to lora_r
    lora_dropout=0.05,
    lora_target="language",
    max_length=1024,
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
