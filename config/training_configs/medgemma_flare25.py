"""MedGemma 4B for FLARE 2025, task 5, on an Ampere card of 24 GB: QLoRA with the settings of the published baseline.

The files are those of https://huggingface.co/datasets/FLARE-MedFM/FLARE-Task5-MLLM-2D. Rank, alpha, dropout, learning
rate, batch of 32, schedule and clipping are those of FLARE25-MedGemma (`finetune_medgemma.py`).

Cost: the 4-bit weights and the embedding take about 4 GB (computed).
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_flare25.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/flare25.py", "../_base_/runtime/ampere.py"]

model_args = dict(load_in_4bit=True, lora_r=16, lora_alpha=32, lora_dropout=0.1, image_size=896, max_length=2048)
training_args = dict(
    per_device_train_batch_size=4,
    gradient_accumulation_steps=8,
    learning_rate=2e-5,
    warmup_steps=0.1,
    max_grad_norm=0.3,
)
