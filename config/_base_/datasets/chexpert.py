"""CheXpert: 13 labels or `No Finding` of frontal chest X-rays; uncertain labels count as absent (U-zeros).

The official validation split, with the labels of three radiologists, is the test split: the download has no other.
"""

data_args = dict(
    train=dict(type="CheXpertDataset", data_path="data/CheXpert-v1.0-small", split="train", uncertain="zeros"),
    validation=None,
    test=dict(type="CheXpertDataset", data_path="data/CheXpert-v1.0-small", split="valid", uncertain="zeros"),
    compute_metric="f1",
    gen_kwargs=dict(max_new_tokens=96),
    on_error="raise",
    tokens_per_micro_batch=None,
)
