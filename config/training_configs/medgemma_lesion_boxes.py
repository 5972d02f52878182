"""MedGemma 4B with heads for boxes and masks of lesions, on an Ampere card of 16 GB or more.

Masks have 128 pixels per side, four times the 32 x 32 patches of an image of 448 pixels. Images of 896 pixels give
masks of 256 pixels, and the tower takes four times the memory. Raise data_args.train.size for more than a trial.

Cost: the bf16 weights take 8.6 GB (computed); a forward has at most 2048 tokens.
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_lesion_boxes.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/lesion_boxes.py", "../_base_/runtime/ampere.py"]

model_args = dict(
    heads=dict(box=dict(type="BoxHead", outline=True), mask=dict(type="MaskHead")),
    pad_to_square=True,
    image_size=448,
)
objectives = dict(
    box=dict(type="BoxLoss", weight=1.0),
    mask=dict(type="MaskLoss", weight=1.0),
)
data_args = dict(tokens_per_micro_batch=2048)
training_args = dict(
    per_device_train_batch_size=8,
)
