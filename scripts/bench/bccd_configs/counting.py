"""Number of red cells in an image: a SigLIP with a regression head."""

_base_ = "./base.py"

_CELLS = dict(type="CountingDataset", labels=dict(RBC="red blood cells"), measure="cells")
_TRANSFORMS = [
    dict(type="RandomRotate90"),
    dict(type="RandomFlip"),
    dict(type="ColorJitter", contrast=0.2),
]
_HEAD = dict(type="RegressionHead", measures=["cells"], views=["image"], hidden=64, dropout=0.1, per_token=True)
model_args = dict(
    type="medsiglip",
    model_name_or_path="models/tower",
    trainable="full",
    from_scratch=True,
    heads=dict(measures=_HEAD),
)
objectives = dict(measures=dict(type="MeasureLoss"))
data_args = dict(
    train=dict(data_path="data/train.json", transforms=_TRANSFORMS, **_CELLS),
    test=dict(data_path="data/test.json", **_CELLS),
    compute_metric=["measures"],
)
training_args = dict(max_steps=400)
