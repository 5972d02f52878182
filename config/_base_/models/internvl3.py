"""InternVL 3 2B, which reads an image in tiles, with a LoRA on its language model."""

_base_ = "./image_text.py"

model_args = dict(
    model_name_or_path="OpenGVLab/InternVL3-2B-hf",
    max_length=4096,  # an image has 256 tokens for each of up to 12 tiles, and 256 for its overview
)
