"""PaliGemma 2 3B, which answers one question about images, with a LoRA on its language model."""

model_args = dict(
    type="image-text",
    model_name_or_path="google/paligemma2-3b-mix-448",
    adapter_path=None,
    load_in_4bit=False,
    load_in_8bit=False,
    lora_r=16,
    lora_alpha=None,  # equal to lora_r
    lora_dropout=0.05,
    lora_target="language",
    max_length=1280,  # an image of 448 pixels has 1,024 tokens
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
