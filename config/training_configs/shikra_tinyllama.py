"""Shikra on TinyLlama and CLIP ViT-L/14, for a card of 8 GB: boxes of referring expressions as numbers.

The projector starts from random weights and trains in full precision, beside a LoRA of rank 64 on the language model.

Cost: the bf16 weights take 2.8 GB (computed: 1.1 B of TinyLlama and 0.3 B of CLIP); a forward has at most 4096 tokens.
Command: python mllm/pipeline/finetune.py config/training_configs/shikra_tinyllama.py
"""

_base_ = ["../_base_/models/shikra.py", "../_base_/datasets/refcoco_rec.py", "../_base_/runtime/ampere.py"]

model_args = dict(lora_r=64, max_length=1024)
data_args = dict(tokens_per_micro_batch=4096)
training_args = dict(
    per_device_train_batch_size=16,
    per_device_eval_batch_size=8,
    dataloader_num_workers=4,
)
