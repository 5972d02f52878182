"""Images and their reports in your own files: rows with `image`, `question`, `answer` and `patient`."""

data_args = dict(
    train=dict(
        type="PatientSplit",
        dataset=dict(type="VQADataset", data_path="data/reports/reports.jsonl", image_folder="data/reports/images"),
        split="train",
        fractions=(0.9, 0.1, 0.0),
    ),
    validation=dict(
        type="PatientSplit",
        dataset=dict(type="VQADataset", data_path="data/reports/reports.jsonl", image_folder="data/reports/images"),
        split="validation",
        fractions=(0.9, 0.1, 0.0),
    ),
    test=None,
    gen_kwargs=dict(max_new_tokens=256),
    on_error="raise",
    tokens_per_micro_batch=None,
)
