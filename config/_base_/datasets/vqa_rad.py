"""VQA-RAD: the published split. Its test images occur in training, too; `by_image=False` permits that."""

data_args = dict(
    train=dict(type="MedicalVQADataset", layout="vqa_rad", data_path="data/VQA_RAD", split="train", by_image=False),
    validation=None,
    test=dict(type="MedicalVQADataset", layout="vqa_rad", data_path="data/VQA_RAD", split="test", by_image=False),
    compute_metric=["accuracy", "exact_match", "token_f1"],
    gen_kwargs=dict(max_new_tokens=48),
    on_error="raise",
    tokens_per_micro_batch=None,
)
