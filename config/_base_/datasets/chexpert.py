"""CheXpert: 13 labels or `No Finding` of frontal chest X-rays; uncertain labels count as absent (U-zeros)."""

data_args = dict(
    train=dict(type="CheXpertDataset", data_path="data/CheXpert-v1.0-small", split="train", uncertain="zeros"),
    validation=dict(type="CheXpertDataset", data_path="data/CheXpert-v1.0-small", split="valid", uncertain="zeros"),
    test=None,
    compute_metric="f1",
    gen_kwargs=dict(max_new_tokens=96),
    on_error="raise",
    tokens_per_micro_batch=None,
)
