"""InternVL 3 2B answers the questions of VQA-RAD, on an Ampere card of 24 GB.

Data and settings are those of medgemma_vqa_rad.py, so the results of both models can be compared.

Cost: the bf16 weights take 4.2 GB (computed: 2.1 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/internvl3_vqa_rad.py
"""

_base_ = ["../_base_/models/internvl3.py", "../_base_/datasets/vqa_rad.py", "../_base_/runtime/ampere.py"]

data_args = dict(tokens_per_micro_batch=4096)
training_args = dict(
    eval_strategy="no",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
)
