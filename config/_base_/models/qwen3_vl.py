"""Qwen3-VL 4B, which reads images in their own resolution, with a LoRA on its language model."""

model_args = dict(
    type="image-text",
    model_name_or_path="Qwen/Qwen3-VL-4B-Instruct",
    adapter_path=None,
    load_in_4bit=False,
    load_in_8bit=False,
    lora_r=16,
    lora_alpha=None,  # equal to lora_r
    lora_dropout=0.05,
    lora_target="language",
    max_length=2048,  # an image has one token for 32 x 32 pixels: 1,024 for 1024 x 1024
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
