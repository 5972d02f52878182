"""VaultGemma 1B for medical flashcards, with (3.0, 1e-5)-differential privacy, on an Ampere card of 16 GB.

Cost: the weights take about 1 GB (computed: 1.04 B parameters in 4 bits; the embedding, 0.3 B, in bf16).
Noise: python mllm/pipeline/plan.py config/training_configs/vaultgemma_dp.py --privacy
Command: python mllm/pipeline/finetune.py config/training_configs/vaultgemma_dp.py
"""

_base_ = ["../_base_/models/vaultgemma.py", "../_base_/datasets/medical_flashcards.py", "../_base_/runtime/private.py"]

privacy_args = dict(target_epsilon=3.0, target_delta=1e-5, clip_norm=1.0)
