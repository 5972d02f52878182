"""MedGemma 4B with heads for boxes and masks, for your own folders of images and masks, on an Ampere card of 24 GB.

Cost: the bf16 weights take 8.6 GB (computed: 4.3 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_segmentation.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/mask_folders.py", "../_base_/runtime/ampere.py"]

model_args = dict(
    heads=dict(box=dict(type="BoxHead", outline=True), mask=dict(type="MaskHead")),
    pad_to_square=True,
    image_size=448,
)
objectives = dict(
    box=dict(type="BoxLoss", weight=1.0),
    mask=dict(type="MaskLoss", weight=1.0),
)
training_args = dict(
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
)
