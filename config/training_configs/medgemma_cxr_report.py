"""MedGemma 4B writes the findings of chest X-rays, trained on MIMIC-CXR, on an Ampere card of 24 GB.

Cost: the bf16 weights take 8.6 GB (computed: 4.3 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_cxr_report.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/mimic_cxr_report.py", "../_base_/runtime/ampere.py"]

model_args = dict(lora_r=16, image_size=896, max_length=768)
training_args = dict(
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
)
