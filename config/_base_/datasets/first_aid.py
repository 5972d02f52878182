"""Questions and answers about first aid in your own files: conversations, or the columns `question` and `answer`."""

data_args = dict(
    train=dict(type="TextQADataset", data_path="data/first_aid/train.jsonl"),
    validation=None,
    test=None,
    gen_kwargs=dict(max_new_tokens=256),
    on_error="raise",
    tokens_per_micro_batch=None,
)
