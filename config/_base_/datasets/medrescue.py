"""First aid in your own files: conversations for training, and multiple-choice questions before and after it."""

_base_ = ["first_aid.py"]

data_args = dict(
    test=dict(_delete_=True, type="MultipleChoiceDataset", data_path="data/first_aid/test.jsonl"),
    compute_metric=["accuracy", "balanced_accuracy"],
    compute_untrained=True,
    gen_kwargs=dict(max_new_tokens=32),  # enough for a letter with the text of its option
)
