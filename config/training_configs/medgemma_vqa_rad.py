"""MedGemma 4B answers the questions of VQA-RAD, on an Ampere card of 24 GB.

The published split shares images between training and test. For a split by image, divide `split="all"` by PatientSplit.

Cost: the bf16 weights take 8.6 GB (computed: 4.3 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_vqa_rad.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/vqa_rad.py", "../_base_/runtime/ampere.py"]

model_args = dict(lora_r=16, image_size=896, max_length=512)
training_args = dict(
    eval_strategy="no",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
)
