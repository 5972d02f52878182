"""Training on several GPUs with DDP, where each process holds all weights: start it with `mllm launch`."""

_base_ = "./finetune.py"

training_args = dict(ddp_timeout=1800)  # seconds that processes wait for each other
