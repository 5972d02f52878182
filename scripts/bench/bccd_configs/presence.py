"""Platelets in an image, yes or no: the likelihoods of both answers of a Gemma 3 with a SigLIP."""

_base_ = "./detection_heads.py"

_CELLS = dict(type="PresenceDataset", labels=dict(Platelets="platelets"), template_string="Are there <label>?")
_TRANSFORMS = [
    dict(type="RandomFlip"),
    dict(type="RandomFlip", direction="vertical"),
    dict(type="ColorJitter", brightness=0.05, contrast=0.1),
]
model_args = dict(heads=dict(_delete_=True))
objectives = dict(box=None)
data_args = dict(
    train=dict(_delete_=True, data_path="data/train.json", transforms=_TRANSFORMS, **_CELLS),
    test=dict(_delete_=True, data_path="data/test.json", **_CELLS),
    compute_metric=["auroc", "balanced_accuracy"],
    gen_kwargs=dict(_delete_=True, scoring="options", choices=["yes", "no"], batch_size=16),
)
training_args = dict(max_steps=600, per_device_train_batch_size=16, learning_rate=1e-3)
