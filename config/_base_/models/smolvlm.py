"""SmolVLM 256M (Idefics 3): a small model that reads images, with a LoRA on its language model."""

_base_ = "./image_text.py"

model_args = dict(
    model_name_or_path="HuggingFaceTB/SmolVLM-256M-Instruct",
    max_length=2048,
)
