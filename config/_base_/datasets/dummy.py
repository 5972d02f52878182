"""Generated images (phantoms) of seven modalities with questions and known answers. Nothing is downloaded."""

data_args = dict(
    train=dict(type="DummyDataset", size=21, seed=0, tasks=("modality",), image_size=448),
    validation=dict(type="DummyDataset", size=7, seed=1, tasks=("modality",), image_size=448),
    test=dict(type="DummyDataset", size=7, seed=2, tasks=("modality",), image_size=448),
    compute_metric="accuracy",
    gen_kwargs=dict(max_new_tokens=16),
    on_error="raise",
    tokens_per_micro_batch=None,
)
