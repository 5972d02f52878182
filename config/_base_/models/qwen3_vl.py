"""Qwen3-VL 4B, which reads images in their own resolution, with a LoRA on its language model."""

_base_ = "./image_text.py"

model_args = dict(
    model_name_or_path="Qwen/Qwen3-VL-4B-Instruct",
    max_length=2048,  # an image has one token for 32 x 32 pixels: 1,024 for 1024 x 1024
)
