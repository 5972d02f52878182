"""PerceptionGPT on LLaVA 1.5 7B, for a card of 24 GB: a box and a mask of every referring expression.

Rank 16, alpha 64 on the queries and values, loss weights 1, 1 and 1, as published.

Cost: the bf16 weights take 14.1 GB (computed: 6.7 B of Vicuna and 0.3 B of CLIP); pieces hold 2048 tokens at most.
Command: python mllm/pipeline/finetune.py config/training_configs/perceptionGPT_refcoco.py
"""

_base_ = ["../_base_/models/perceptionGPT.py", "../_base_/datasets/refcoco_res.py", "../_base_/runtime/finetune.py"]

data_args = dict(tokens_per_micro_batch=2048)
training_args = dict(
    per_device_train_batch_size=8,
    per_device_eval_batch_size=4,
    gradient_accumulation_steps=2,
    gradient_checkpointing=True,
    bf16=True,
    fp16=False,
    tf32=True,
    dataloader_num_workers=4,
)
