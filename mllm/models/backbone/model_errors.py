"""Messages for the errors that the code of transformers raises while a model computes."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers
from torch import nn

from mllm.errors import ConfigError, UserError, is_out_of_memory, one_line


@contextmanager
def explained_model_errors(model: nn.Module, moment: str, fault: str) -> Iterator[None]:
    """Convert errors that the code of transformers raises in the block to `ConfigError`; others are passed on.

    Args:
        model: The model.
        moment: Words for what the block computes, such as 'on the first batch'.
        fault: Words for what cannot be done, such as 'cannot be trained'.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or not _is_of_transformers(error):
            raise
        raise ConfigError(
            f"{type(model).__name__} of transformers {transformers.__version__} fails {moment} "
            f"({type(error).__name__}: {one_line(str(error))[:300]}): this architecture {fault} with these settings; "
            "config/FAMILIES.md lists the tested ones"
        ) from error


def _is_of_transformers(error: Exception) -> bool:
    """Return True if the code of a model of transformers called what failed, or other code of transformers failed."""
    files = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)]
    return any(parts[-4:-2] == ("transformers", "models") for parts in files) or "transformers" in files[-1][-4:-1]
