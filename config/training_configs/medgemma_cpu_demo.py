"""Demo: a tiny MedGemma learns to distinguish seven imaging modalities, on two CPU cores.

Cost: at most three minutes on two cores; nothing is downloaded.
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_cpu_demo.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/dummy.py", "../_base_/runtime/finetune.py"]

model_args = dict(
    model_name_or_path="ckpt/tiny-medgemma",
    lora_r=16,
    lora_dropout=0.0,
    lora_target="all",
    image_size=112,
    image_token_len=16,
    max_length=256,
)
data_args = dict(
    train=dict(size=448, image_size=112),
    validation=dict(size=56, image_size=112),
    test=dict(size=112, image_size=112),
    gen_kwargs=dict(batch_size=64),
    compute_untrained=True,
)
training_args = dict(
    num_train_epochs=4,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=16,
    learning_rate=2e-3,
    logging_steps=4,
    dataloader_num_workers=0,
)
