"""BCCD: 364 blood smears with boxes of white blood cells and platelets, in the layout of Pascal VOC."""

_LABELS = dict(WBC="white blood cells", Platelets="platelets")
data_args = dict(
    train=dict(type="DetectionDataset", data_path="data/bccd", split="train", labels=_LABELS, empty_boxes="drop"),
    validation=dict(type="DetectionDataset", data_path="data/bccd", split="val", labels=_LABELS, empty_boxes="drop"),
    test=dict(type="DetectionDataset", data_path="data/bccd", split="test", labels=_LABELS, empty_boxes="drop"),
    compute_metric=["detection_f1", "rec", "coco_ap"],
    gen_kwargs=dict(max_new_tokens=192),
    on_error="raise",
    tokens_per_micro_batch=None,
)
