"""Platelets in an image: a SigLIP with a regression head counts them, and the predicted number is the score."""

_base_ = "./counting.py"

_CELLS = dict(labels=dict(_delete_=True, Platelets="platelets"), measure="platelets")
model_args = dict(heads=dict(measures=dict(measures=["platelets"])))
data_args = dict(train=_CELLS, test=_CELLS)
