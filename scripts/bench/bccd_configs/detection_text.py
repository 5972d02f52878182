"""Boxes of white cells as text: one token of the vocabulary for each of 65 positions along an axis."""

_base_ = "./detection_heads.py"

model_args = dict(heads=dict(_delete_=True), box_format=dict(type="location_tokens", num_bins=65))
objectives = dict(box=None)
