"""GEMMA 3NCORE: Gemma 3n's vision tower with a LoRA and a head for EF, EDV and ESV.

The vision tower of MedGemma is the teacher of its features.
"""

model_args = dict(
    type="gemma3n-student",
    model_name_or_path="google/gemma-3n-E2B-it",
    part="vision",
    adapter_path=None,
    lora_r=8,
    lora_alpha=16,
    lora_dropout=0.1,
    lora_target="vision",
    heads=dict(measures=dict(type="RegressionHead", measures=["EF", "EDV", "ESV"], views=["ED", "ES"])),
)
distill_args = dict(
    teacher=dict(type="medgemma", model_name_or_path="google/medgemma-4b-pt", part="vision"),
    cache=True,
)
objectives = dict(
    measures=dict(type="MeasureLoss", weight=dict(start=0.95, end=0.7)),  # 1 minus the weight of the features
    # Blocks 0, 1 and 2 of the student match layers 8, 17 and 26 of the teacher, pooled to 4 x 4 and normalized. The
    # published run used grid=1 and normalize=False.
    feature_match=dict(type="FeatureMatch", weight=dict(start=0.05, end=0.3), grid=4),
)
