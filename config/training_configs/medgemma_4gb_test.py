"""MedGemma 4B on a card of 4 GB (GTX 1650): three steps on generated images, to test the memory.

Cost: at most 3.9 GB for tensors (mllm plan), and a card of 4 GB has about 3.7: this run tests whether that is enough.
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_4gb_test.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/dummy.py", "../_base_/runtime/turing.py"]

model_args = dict(load_in_4bit=True, lora_r=16, image_size=448, image_token_len=128, max_length=512)
training_args = dict(
    max_steps=3,
    per_device_train_batch_size=1,
    optim="paged_adamw_8bit",
)
