"""MedGemma 4B on a T4 of 16 GB: 8-bit weights, rank 64, 448-pixel images of 256 tokens.

Cost: at most 13.8 GB for tensors (mllm plan); a T4 has no bf16 and no tf32.
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_16gb_medical.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/dummy.py", "../_base_/runtime/turing.py"]

model_args = dict(load_in_8bit=True, lora_r=64, image_size=448, image_token_len=256, max_length=2048)
training_args = dict(
    per_device_train_batch_size=4,
)
