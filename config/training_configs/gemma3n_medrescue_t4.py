"""MedRescue on a T4 of 16 GB: `gemma3n_medrescue.py` without bf16 and with activations in fp32.

Cost: 10.4 GB for the weights (computed: language model 2.0 in 4-bit, embeddings 5.8, the other towers 2.5), and 1.2 GB
for the checkpointed states of 1024 tokens; not measured on a card.
Command: python mllm/pipeline/finetune.py config/training_configs/gemma3n_medrescue_t4.py
"""

_base_ = ["../_base_/models/gemma3n_text.py", "../_base_/datasets/medrescue.py", "../_base_/runtime/turing.py"]

data_args = dict(tokens_per_micro_batch=1024)  # the states of four samples would take 4.7 GB in fp32
training_args = dict(
    num_train_epochs=1,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    learning_rate=2e-5,
    lr_scheduler_type="linear",
    warmup_steps=5,
    weight_decay=0.01,
    optim="adamw_8bit",
    save_strategy="steps",
    save_steps=500,
    eval_strategy="no",
    seed=3407,
)
