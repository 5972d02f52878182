"""MedGemma 4B for reports, with differential privacy by patient, on an Ampere card of 24 GB.

Cost: the bf16 weights take 8.6 GB (computed: 4.3 B parameters). All records of a patient are one privacy unit.
Command: python mllm/pipeline/finetune.py config/training_configs/medgemma_dp_reports.py
"""

_base_ = ["../_base_/models/medgemma.py", "../_base_/datasets/reports.py", "../_base_/runtime/private.py"]

model_args = dict(lora_r=8, lora_alpha=16, lora_dropout=0.0, image_size=448, image_token_len=128, max_length=512)
training_args = dict(gradient_checkpointing=True)
privacy_args = dict(
    target_epsilon=8.0,
    target_delta=1e-5,
    unit="patient",
    max_records_per_patient=4,
    physical_batch_size=4,
)
