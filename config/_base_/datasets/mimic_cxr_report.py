"""MIMIC-CXR: the findings of reports about the first frontal image of each study, official splits."""

data_args = dict(
    train=dict(type="MIMICCXRDataset", data_path="data/mimic-cxr-jpg/2.0.0", split="train"),
    validation=dict(type="MIMICCXRDataset", data_path="data/mimic-cxr-jpg/2.0.0", split="validate"),
    test=dict(type="MIMICCXRDataset", data_path="data/mimic-cxr-jpg/2.0.0", split="test"),
    compute_metric=["bleu", "rouge_l", "cider", "chexpert_f1"],
    gen_kwargs=dict(max_new_tokens=256),
    on_error="raise",
    tokens_per_micro_batch=None,
)
