"""InternVL 3 2B, which reads an image in tiles, with a LoRA on its language model."""

model_args = dict(
    type="image-text",
    model_name_or_path="OpenGVLab/InternVL3-2B-hf",
    adapter_path=None,
    load_in_4bit=False,
    load_in_8bit=False,
    lora_r=16,
    lora_alpha=None,  # equal to lora_r
    lora_dropout=0.05,
    lora_target="language",
    max_length=4096,  # an image has 256 tokens for each of up to 12 tiles, and 256 for its overview
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
