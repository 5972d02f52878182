"""GEMMA 3NCORE on an A100 of 40 GB: distillation from MedGemma's vision tower to Gemma 3n's, for EF, EDV and ESV.

Sample size, feature weight, LoRA, batch, epochs and learning rate are as published. 100 videos are less than one update
of 128, so three epochs are three updates. They test the pipeline, and the model learns almost nothing. Set
data_args.train.size=None for all videos. The features of the teacher are cached in exp/teacher_cache.

Cost: the two towers have 294 and 417 million weights, 1.4 GB together in bf16 (computed); a GPU run is not measured.
Command: python mllm/pipeline/finetune.py config/training_configs/gemma3n_3ncore_kd.py
"""

_base_ = ["../_base_/models/gemma3n_student.py", "../_base_/datasets/echonet.py", "../_base_/runtime/ampere.py"]

training_args = dict(
    learning_rate=2e-5,
    lr_scheduler_type="constant",
    warmup_steps=0,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=16,
    gradient_accumulation_steps=8,
    dataloader_num_workers=4,
)
