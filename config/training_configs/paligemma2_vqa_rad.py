"""PaliGemma 2 3B answers the questions of VQA-RAD, on an Ampere card of 24 GB.

Data and settings are those of medgemma_vqa_rad.py, so the results of both models can be compared. PaliGemma reads one
question for each answer; its prompt is the images, `<bos>`, the question and a line feed.

Cost: the bf16 weights take 6.1 GB (computed: 3.0 B parameters).
Command: python mllm/pipeline/finetune.py config/training_configs/paligemma2_vqa_rad.py
"""

_base_ = ["../_base_/models/paligemma2.py", "../_base_/datasets/vqa_rad.py", "../_base_/runtime/ampere.py"]

training_args = dict(
    eval_strategy="no",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
)
