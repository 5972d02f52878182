"""Training on several GPUs with DeepSpeed ZeRO-3, which divides weights, gradients and optimizer states."""

_base_ = "./finetune.py"

# DeepSpeed's batch size and clipping are those of training_args. Optimizer, schedule and precision are ours.
training_args = dict(deepspeed=dict(zero_optimization=dict(stage=3)))
