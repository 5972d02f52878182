"""Training on GPUs of the Turing generation (T4) or older: fp16 weights and gradient checkpointing."""

_base_ = "./finetune.py"

training_args = dict(
    gradient_checkpointing=True,
    fp16=True,  # stored weights only; the residual stream stays in fp32, where Gemma 3 and Gemma 3n do not overflow
    bf16=False,
    tf32=False,
)
