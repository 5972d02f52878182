"""Training of a LoRA with differential privacy: large draws, few updates, a checkpoint every 25 updates."""

training_args = dict(
    num_train_epochs=3,
    per_device_train_batch_size=256,  # mean number of units in a draw
    per_device_eval_batch_size=8,
    learning_rate=5e-4,
    lr_scheduler_type="cosine",
    warmup_steps=40,
    weight_decay=0.0,
    bf16=True,
    fp16=False,
    gradient_checkpointing=False,
    logging_steps=1,
    eval_strategy="steps",
    eval_steps=100,
    save_strategy="steps",
    save_steps=25,
    save_total_limit=2,
    dataloader_num_workers=2,
    report_to=["tensorboard"],
    seed=0,
)
privacy_args = dict(
    target_epsilon=3.0,
    target_delta=1e-5,
    clip_norm=1.0,
    physical_batch_size=8,
    unit="sample",
    accountant="prv",
)
