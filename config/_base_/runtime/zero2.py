"""Training on several GPUs with DeepSpeed ZeRO-2, which divides gradients and optimizer states."""

_base_ = "./finetune.py"

# DeepSpeed's batch size and clipping are those of training_args. Optimizer, schedule and precision are ours.
training_args = dict(deepspeed=dict(zero_optimization=dict(stage=2)))
