"""Fine-tuning of multimodal language models for medical imaging, from one config file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mllm.predict.library import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load` when it is used, because its packages take seconds to import."""
    if name == "load":
        from mllm.predict.library import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
