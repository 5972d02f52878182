"""Generated echocardiograms with known volumes: hearts, images, masks, and folders in the published layouts."""

from mllm.dataset.phantoms.echo import LABELS, Echo, Probe
from mllm.dataset.phantoms.echo_folders import EchoPatient, write_camus, write_echonet
from mllm.dataset.phantoms.heart import VIEWS, Heart, Ventricle, draw_heart

__all__ = [
    "LABELS",
    "VIEWS",
    "Echo",
    "EchoPatient",
    "Heart",
    "Probe",
    "Ventricle",
    "draw_heart",
    "write_camus",
    "write_echonet",
]
