"""Boxes of referring expressions: RefCOCO, RefCOCO+ and RefCOCOg in the format of Shikra."""

data_args = dict(
    train=dict(type="RECDataset", data_path="data/refcoco/REC_ref3_train.jsonl", image_folder="data/coco/train2014"),
    validation=dict(
        type="RECDataset", data_path="data/refcoco/REC_refcoco_unc_val.jsonl", image_folder="data/coco/train2014"
    ),
    test=dict(
        type="RECDataset", data_path="data/refcoco/REC_refcoco_unc_testA.jsonl", image_folder="data/coco/train2014"
    ),
    compute_metric="rec",
    gen_kwargs=dict(max_new_tokens=48),
    on_error="raise",
    tokens_per_micro_batch=None,
)
