"""MedGemma 1.5 4B on slices of CT volumes, on an Ampere card of 24 GB.

MedGemma 1.5 has the layout of MedGemma and was also trained on volumes as sequences of slices. 4096 tokens hold 14
slices of 256 tokens with a question and a report of 400 tokens; `image_size=448` with `image_token_len=64` holds 55.

Cost: the bf16 weights take 8.6 GB (computed: 4.3 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma15_ct_slices.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/ct_slices.py", "../_base_/runtime/ampere.py"]

model_args = dict(
    model_name_or_path="google/medgemma-1.5-4b-it",
    image_size=896,
    image_token_len=256,
    max_length=4096,
)
training_args = dict(
    gradient_accumulation_steps=16,
)
