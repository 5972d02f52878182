"""Masks of referring expressions: RefCOCO, RefCOCO+ and RefCOCOg in the format of PerceptionGPT."""

data_args = dict(
    train=dict(type="RESDataset", data_path="data/refcoco/RES_ref3_train.jsonl", image_folder="data/coco/train2014"),
    validation=dict(
        type="RESDataset", data_path="data/refcoco/RES_refcoco_unc_val.jsonl", image_folder="data/coco/train2014"
    ),
    test=dict(
        type="RESDataset", data_path="data/refcoco/RES_refcoco_unc_testA.jsonl", image_folder="data/coco/train2014"
    ),
    compute_metric=["rec", "res"],
    gen_kwargs=dict(max_new_tokens=24),
    on_error="raise",
    tokens_per_micro_batch=None,
)
