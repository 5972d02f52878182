"""The figures that a run reports about its answers."""

from mllm.metrics import text as text
