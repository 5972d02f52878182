"""MedGemma 4B names the findings of chest X-rays, trained on CheXpert, on an Ampere card of 24 GB.

`uncertain="ones"` counts uncertain labels as present (U-ones). The official validation split, with the labels of three
radiologists, is the test split.

Cost: the bf16 weights take 8.6 GB (computed: 4.3 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_chexpert.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/chexpert.py", "../_base_/runtime/ampere.py"]

model_args = dict(lora_r=16, image_size=448, max_length=512)
training_args = dict(
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
)
