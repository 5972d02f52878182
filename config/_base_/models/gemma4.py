"""Gemma 4 E4B, which reads images, with a LoRA on its language model."""

_base_ = "./image_text.py"

model_args = dict(
    model_name_or_path="google/gemma-4-E4B-it",
    max_length=1024,  # an image has at most 280 tokens
)
