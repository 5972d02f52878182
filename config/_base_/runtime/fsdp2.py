"""Training on several GPUs with FSDP2, which divides weights, gradients and optimizer states."""

_base_ = "./finetune.py"

# The layers of the model are chosen by its family. Each is gathered when it is used, and released after it.
training_args = dict(fsdp=True, fsdp_config=dict(reshard_after_forward=True))
