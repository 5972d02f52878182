"""PerceptionGPT on LLaVA 1.5 7B, for a card of 24 GB: boxes and masks of referring expressions.

As published: rank 16 and alpha 64 on queries and values, all loss weights 1.

Cost: the bf16 weights take 14.1 GB (computed: 6.7 B of Vicuna and 0.3 B of CLIP); a forward has at most 2048 tokens.
Command: python mllm/pipeline/finetune.py config/training_configs/perceptionGPT_refcoco.py
"""

_base_ = ["../_base_/models/perceptionGPT.py", "../_base_/datasets/refcoco_res.py", "../_base_/runtime/ampere.py"]

data_args = dict(tokens_per_micro_batch=2048)
training_args = dict(
    per_device_train_batch_size=8,
    per_device_eval_batch_size=4,
    gradient_accumulation_steps=2,
    dataloader_num_workers=4,
)
