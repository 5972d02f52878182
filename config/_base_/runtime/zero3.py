"""Training on several GPUs with DeepSpeed ZeRO-3, which divides weights, gradients and optimizer states."""

_base_ = "./finetune.py"

# DeepSpeed's other settings are filled from training_args: batch size, clipping, optimizer, schedule and bf16.
training_args = dict(deepspeed=dict(zero_optimization=dict(stage=3)))
