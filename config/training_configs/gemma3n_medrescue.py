"""MedRescue: Gemma 3n E4B with 4-bit weights for first-aid conversations, on an Ampere card of 16 GB.

The questions of the test split are answered before and after the training, and an exact parser reads the letters. The
published evaluation asked 130 other questions, and a language model judged the answers.

Cost: the 4-bit weights and the embeddings take about 9 GB (computed: 7.9 B parameters, of which the two embeddings are
in bf16). --tiny tries the config without weights.
Command: python mllm/pipeline/finetune.py config/training_configs/gemma3n_medrescue.py
"""

_base_ = ["../_base_/models/gemma3n_text.py", "../_base_/datasets/medrescue.py", "../_base_/runtime/finetune.py"]

training_args = dict(
    num_train_epochs=1,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    learning_rate=2e-5,
    lr_scheduler_type="linear",
    warmup_steps=5,
    weight_decay=0.01,
    optim="adamw_8bit",
    bf16=True,
    gradient_checkpointing=True,
    save_strategy="steps",
    save_steps=500,
    eval_strategy="no",
    seed=3407,
)
