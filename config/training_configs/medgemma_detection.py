"""MedGemma 4B finds blood cells and writes their boxes as text, on an Ampere card of 24 GB.

The files are those of https://github.com/Shenggan/BCCD_Dataset (folder `BCCD`).

Cost: the bf16 weights take 8.6 GB (computed: 4.3 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_detection.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/blood_cells.py", "../_base_/runtime/ampere.py"]

model_args = dict(lora_r=16, image_size=896, max_length=1024)
training_args = dict(
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
)
