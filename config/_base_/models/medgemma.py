"""MedGemma 4B, an instruction-tuned Gemma 3 that reads images, with a LoRA on its language model."""

model_args = dict(
    type="medgemma",
    model_name_or_path="ckpt/medgemma-4b-it",  # downloaded by scripts/download_medgemma.sh
    adapter_path=None,
    merge_lora=False,
    load_in_4bit=False,
    load_in_8bit=False,
    lora_r=16,
    lora_alpha=None,  # equal to lora_r
    lora_dropout=0.05,
    lora_target="language",
    image_size=896,
    image_token_len=256,
    max_length=1024,
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
