"""Boxes of white cells from the box head of PerceptionGPT: a Gemma 3 with a SigLIP."""

_base_ = "./base.py"

_CELLS = dict(type="DetectionDataset", labels=dict(WBC="white cells"), template_string="Detect <label>.")
_TRANSFORMS = [
    dict(type="RandomRotate90"),
    dict(type="RandomFlip"),
    dict(type="ColorJitter", brightness=0.05, contrast=0.1),
]
model_args = dict(
    type="medgemma",
    model_name_or_path="models/language",
    trainable="full",
    from_scratch=True,
    image_size=128,
    image_token_len=64,
    heads=dict(box=dict(type="BoxHead", hidden=128, attention=64)),
)
objectives = dict(next_token=dict(type="NextToken"), box=dict(type="BoxLoss", weight=2.0, l1=3.0))
data_args = dict(
    train=dict(data_path="data/train.json", transforms=_TRANSFORMS, **_CELLS),
    test=dict(data_path="data/test.json", **_CELLS),
    compute_metric=["coco_ap"],
    gen_kwargs=dict(max_new_tokens=16, batch_size=16),
)
training_args = dict(max_steps=300, per_device_train_batch_size=8)
