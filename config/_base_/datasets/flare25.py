"""FLARE 2025, task 5: 19 datasets of 2D images with questions of seven tasks, in `organized_dataset`."""

data_args = dict(
    train=dict(type="FLAREDataset", data_path="data/flare25/organized_dataset", split="training"),
    validation=dict(type="FLAREDataset", data_path="data/flare25/organized_dataset", split="validation-public"),
    test=dict(type="FLAREDataset", data_path="data/flare25/organized_dataset", split="validation-hidden"),
    compute_metric=["balanced_accuracy", "f1", "detection_f1", "instance_f1", "mae", "rouge_l"],
    gen_kwargs=dict(max_new_tokens=256),
    on_error="raise",
    tokens_per_micro_batch=None,
)
