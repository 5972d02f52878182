"""Gemma 3n E4B as a text model with 4-bit weights and a LoRA on attention and MLP of its language model."""

model_args = dict(
    type="causal-lm",
    model_name_or_path="google/gemma-3n-E4B-it",
    adapter_path=None,
    load_in_4bit=True,
    load_in_8bit=False,
    lora_r=8,
    lora_alpha=8,
    lora_dropout=0.0,
    lora_target="language",
    max_length=1024,
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
