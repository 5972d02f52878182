"""Training on GPUs of the Ampere generation or newer: bf16, TF32 and gradient checkpointing."""

_base_ = "./finetune.py"

training_args = dict(gradient_checkpointing=True, bf16=True, fp16=False, tf32=True)
