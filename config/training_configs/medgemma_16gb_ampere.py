"""MedGemma 4B on an Ampere or newer card of 16 GB or more: bf16, tf32, rank 128, images of 896 pixels.

Cost: at most 15.0 GB for tensors (mllm plan); one forward pass has at most 4096 tokens.
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_16gb_ampere.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/dummy.py", "../_base_/runtime/ampere.py"]

model_args = dict(lora_r=128, image_size=896, image_token_len=256, max_length=2048)
data_args = dict(tokens_per_micro_batch=4096)
training_args = dict(
    per_device_train_batch_size=16,
)
