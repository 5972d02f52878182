"""MedGemma 4B with heads, for an Ampere card of 16 GB or more: a box and a mask of every lesion of a phantom.

Masks of 128 pixels are read from the 32 x 32 patches of images of 448; 896 pixels give masks of 256 for four times
the memory of the tower. Raise data_args.train.size for more than a trial.

Cost: the bf16 weights take 8.6 GB (computed); pieces hold 2048 tokens at most.
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_lesion_boxes.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/lesion_boxes.py", "../_base_/runtime/finetune.py"]

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
    gradient_checkpointing=True,
    bf16=True,
    fp16=False,
    tf32=True,
)
