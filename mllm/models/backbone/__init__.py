"""Backbones: loading, quantization, half precision, streamed weights and hooks on their layers."""
