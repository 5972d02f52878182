"""GEMMA 3NCORE on a T4 of 16 GB: gemma3n_3ncore_kd.py in fp32, two patients per forward.

The tower's convolutions overflow in fp16, and a T4 has no bf16; its fp32 weights take 1.2 GB.

Cost: the two towers have 294 and 417 million weights, 2.8 GB together in fp32 (computed); a GPU run is not measured.
Command: python mllm/pipeline/finetune.py config/training_configs/gemma3n_3ncore_kd_t4.py
"""

_base_ = ["../_base_/models/gemma3n_student.py", "../_base_/datasets/echonet.py", "../_base_/runtime/finetune.py"]

training_args = dict(
    learning_rate=2e-5,
    lr_scheduler_type="constant",
    warmup_steps=0,
    per_device_train_batch_size=2,
    per_device_eval_batch_size=4,
    gradient_accumulation_steps=64,
    gradient_checkpointing=True,
)
