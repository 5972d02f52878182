"""Qwen3-VL 4B answers the questions of VQA-RAD, on an Ampere card of 24 GB.

Data and settings are those of medgemma_vqa_rad.py, so the results of both models can be compared. The learning rate
1e-4 is that of published LoRA recipes for Qwen-VL.

Cost: the bf16 weights take 8.9 GB (computed: 4.4 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/qwen3_vl_vqa_rad.py
"""

_base_ = ["../_base_/models/qwen3_vl.py", "../_base_/datasets/vqa_rad.py", "../_base_/runtime/ampere.py"]

data_args = dict(tokens_per_micro_batch=4096)
training_args = dict(
    eval_strategy="no",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    learning_rate=1e-4,
)
