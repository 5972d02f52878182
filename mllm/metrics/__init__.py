"""Metrics of generated answers."""

from mllm.metrics import coco as coco
from mllm.metrics import grounding as grounding
from mllm.metrics import measures as measures
from mllm.metrics import text as text
