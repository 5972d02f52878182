"""PaliGemma 2 3B, which answers one question about images, with a LoRA on its language model."""

_base_ = "./image_text.py"

model_args = dict(
    model_name_or_path="google/paligemma2-3b-mix-448",
    max_length=1280,  # an image of 448 pixels has 1,024 tokens
)
