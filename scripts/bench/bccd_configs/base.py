"""Shared parts of the configs of bccd.py: small copies of the images, random flips and colors, AdamW without a LoRA.

Paths are relative to the folder in which bccd.py writes the images and the model configs.
"""

_base_ = "../../../config/_base_/runtime/finetune.py"

training_args = dict(
    learning_rate=1e-3,
    warmup_steps=20,
    weight_decay=0.05,
    adam_beta2=0.98,
    eval_strategy="no",
    save_strategy="no",
    per_device_train_batch_size=16,
    logging_steps=50,
    dataloader_num_workers=0,
    report_to=[],
)
