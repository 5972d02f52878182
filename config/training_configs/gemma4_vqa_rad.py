"""Gemma 4 E4B answers the questions of VQA-RAD, on an Ampere card of 24 GB.

Data and settings are those of medgemma_vqa_rad.py, so the results of both models can be compared.

Cost: the bf16 weights take 16 GB (computed: 8.0 B parameters, of which 2.8 B are embeddings for each layer).
Command: python mllm/pipeline/finetune.py config/training_configs/gemma4_vqa_rad.py
"""

_base_ = ["../_base_/models/gemma4.py", "../_base_/datasets/vqa_rad.py", "../_base_/runtime/ampere.py"]

training_args = dict(
    eval_strategy="no",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
)
