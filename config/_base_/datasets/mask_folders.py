"""Images and masks of one structure in your own folders, with equal names."""

data_args = dict(
    train=dict(
        type="SegmentationDataset",
        data_path="data/masks/train",
        mask_folder="data/masks/train_mask",
        labels="the lesion",
    ),
    validation=dict(
        type="SegmentationDataset", data_path="data/masks/val", mask_folder="data/masks/val_mask", labels="the lesion"
    ),
    test=dict(
        type="SegmentationDataset", data_path="data/masks/test", mask_folder="data/masks/test_mask", labels="the lesion"
    ),
    compute_metric=["dice", "iou", "res"],
    gen_kwargs=dict(max_new_tokens=32),
    on_error="raise",
    tokens_per_micro_batch=None,
)
