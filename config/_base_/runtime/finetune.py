"""Training of a LoRA: AdamW with a cosine schedule, validation and a checkpoint once per epoch."""

training_args = dict(
    num_train_epochs=3,
    per_device_train_batch_size=1,
    per_device_eval_batch_size=1,
    gradient_accumulation_steps=1,
    learning_rate=2e-4,
    lr_scheduler_type="cosine",
    warmup_steps=0.03,  # values below 1 are a fraction of all steps
    weight_decay=0.0,
    max_grad_norm=1.0,
    bf16=False,
    fp16=False,
    gradient_checkpointing=False,
    gradient_checkpointing_kwargs=dict(use_reentrant=False),
    logging_steps=1,
    eval_strategy="epoch",
    save_strategy="epoch",
    save_total_limit=2,
    dataloader_num_workers=2,
    report_to=["tensorboard"],
    seed=0,
)
