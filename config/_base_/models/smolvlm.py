"""SmolVLM 256M (Idefics 3): a small model that reads images, with a LoRA on its language model."""

model_args = dict(
    type="image-text",
    model_name_or_path="HuggingFaceTB/SmolVLM-256M-Instruct",
    adapter_path=None,
    load_in_4bit=False,
    load_in_8bit=False,
    lora_r=16,
    lora_alpha=None,  # equal to lora_r
    lora_dropout=0.05,
    lora_target="language",
    max_length=2048,
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
