"""MTNT (arXiv:1809.00388), English to French: tab-separated files without a header line."""

data_args = dict(
    train=dict(type="TranslationDataset", data_path="data/mtnt/train.en-fr.tsv"),
    validation=dict(type="TranslationDataset", data_path="data/mtnt/valid.en-fr.tsv"),
    test=None,
    compute_metric=["bleu", "chrf"],
    gen_kwargs=dict(max_new_tokens=200),
    on_error="raise",
    tokens_per_micro_batch=None,
)
