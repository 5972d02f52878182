"""Fine-tuning of multimodal language models for medical imaging, from one config file."""

__version__ = "0.1.0"
