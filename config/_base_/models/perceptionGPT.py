"""PerceptionGPT (arXiv:2311.06612): a LLaVA that writes one token per object, with heads for its box and mask."""

model_args = dict(
    type="perceptionGPT",
    model_name_or_path="llava-hf/llava-1.5-7b-hf",
    vision_tower=None,  # set it to a CLIP if model_name_or_path is a language model
    pretrain_mm_mlp_adapter=None,
    freeze_backbone=False,
    freeze_mm_mlp_adapter=False,
    heads=dict(box=dict(type="BoxHead"), mask=dict(type="MaskHead", threshold=0.35)),
    box_format=dict(type="perception_token"),
    fuse_vision_layers=True,
    adapter_path=None,
    load_in_4bit=False,
    load_in_8bit=False,
    lora_r=16,
    lora_alpha=64,
    lora_dropout=0.1,
    lora_target=r".*language_model\..*\.(q_proj|v_proj)",
    max_length=1024,
)
objectives = dict(
    next_token=dict(type="NextToken", weight=1.0),
    box=dict(type="BoxLoss", weight=1.0),
    mask=dict(type="MaskLoss", weight=1.0),
)
