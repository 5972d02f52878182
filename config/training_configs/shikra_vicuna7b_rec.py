"""Shikra on Vicuna 7B and CLIP ViT-L/14, for a card of 24 GB: boxes of referring expressions as numbers.

The settings are as published, with a LoRA instead of full fine-tuning. To start from a pretrained projector, set
model_args.pretrain_mm_mlp_adapter.

Cost: the bf16 weights take 14.1 GB (computed: 6.7 B of Vicuna and 0.3 B of CLIP); a forward has at most 2048 tokens.
Command: python mllm/pipeline/finetune.py config/training_configs/shikra_vicuna7b_rec.py
"""

_base_ = ["../_base_/models/shikra.py", "../_base_/datasets/refcoco_rec.py", "../_base_/runtime/ampere.py"]

model_args = dict(model_name_or_path="lmsys/vicuna-7b-v1.5", lora_r=64, max_length=1024)
data_args = dict(tokens_per_micro_batch=2048)
training_args = dict(
    per_device_train_batch_size=8,
    per_device_eval_batch_size=4,
    gradient_accumulation_steps=4,
    dataloader_num_workers=4,
)
