"""A LoRA on the language model of an architecture that AutoModelForImageTextToText loads; a config names the model."""

model_args = dict(
    type="image-text",
    adapter_path=None,
    load_in_4bit=False,
    load_in_8bit=False,
    lora_r=16,
    lora_alpha=None,  # equal to lora_r
    lora_dropout=0.05,
    lora_target="language",
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
