"""T5Gemma B-B for translation of English posts to French, on an Ampere card of 16 GB.

Cost: the bf16 weights take 1.2 GB (computed: 0.6 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/t5gemma_mtnt_en_fr.py
"""

_base_ = ["../_base_/models/t5gemma.py", "../_base_/datasets/mtnt_en_fr.py", "../_base_/runtime/finetune.py"]

training_args = dict(
    max_steps=500,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=8,
    learning_rate=1e-4,
    lr_scheduler_type="constant",
    warmup_steps=0,
    optim="adafactor",
    bf16=True,
    eval_strategy="steps",
    eval_steps=250,
    save_strategy="steps",
    save_steps=250,
    seed=42,
)
