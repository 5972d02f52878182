"""Record of type `medsiglip`: the vision tower of a SigLIP, such as MedSigLIP."""

from __future__ import annotations

from mllm.config.schema import ModelArgs
from mllm.family import LazyFunction
from mllm.models.vision_record import vision_record

MODEL_TYPES = frozenset({"siglip", "siglip_vision_model"})
"""A SigLIP with its text tower, and its vision tower alone as the exporter `student` writes it."""

MEDSIGLIP = vision_record(
    "medsiglip",
    ModelArgs,
    load=LazyFunction("mllm.models.siglip.vision:load"),
    towers={"vision": ""},
    layers="encoder.layers",
    model_types=MODEL_TYPES,
    defaults={"part": "vision"},
    tiny={"medsiglip": LazyFunction("mllm.models.siglip.tiny:medsiglip")},
)
