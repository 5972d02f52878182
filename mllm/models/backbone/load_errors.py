"""Messages for the errors of the Hugging Face libraries that a user can cause.

They are a license that was not accepted, a missing network, a damaged file, and an architecture or a tokenizer file
that the installed packages do not support.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from mllm.errors import ConfigError, UserError, is_out_of_memory
from mllm.family import FAMILIES


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Convert errors of the Hugging Face libraries about the checkpoint `name` to `ConfigError`.

    Errors of memory and of the file system are passed on.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = _sentence(name, error)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error


def _sentence(name: str, error: Exception) -> str | None:
    """Return the message for an error that a user can cause, or None."""
    text = str(error)
    if "untagged enum" in text:  # tokenizers: `ModelWrapper` up to 0.20, `ModelUntagged` since
        return (
            f"the tokenizer of '{name}' was written for newer packages than transformers {transformers.__version__} "
            f"and tokenizers {tokenizers.__version__}: run pip install --upgrade transformers tokenizers"
        )
    if isinstance(error, SafetensorError):
        return f"the weights of '{name}' cannot be read ({text}): a file is damaged or incomplete; download it again"
    if "trust_remote_code" in text:
        return f"'{name}' contains its own Python code: if you trust it, set model_args.trust_remote_code=True"
    if "does not recognize this architecture" in text or "Unrecognized model in" in text:
        return (
            f"transformers {transformers.__version__} does not know the architecture that config.json of '{name}' names"
        )
    if "attn_implementation" in text or "FlashAttention" in text or "flash_attn" in text:
        return f"model_args.attn_implementation cannot be used with '{name}': {' '.join(text.split())}"
    if isinstance(error, OSError) and error.errno is None:
        return _hub_sentence(name, error) or f"'{name}' cannot be loaded: {' '.join(text.split())}"
    if isinstance(error, OSError) or is_out_of_memory(error):
        return None
    # Libraries raise nearly every type for a damaged file.
    return (
        f"'{name}' cannot be loaded by transformers {transformers.__version__} ({type(error).__name__}: "
        f"{' '.join(text.split())[:300]}): {_damaged_file(name)}"
    )


def _damaged_file(name: str) -> str:
    """Return the end of the message about a checkpoint that cannot be loaded: its first file that is not valid."""
    for path in sorted(Path(name).glob("*.json")) + sorted(Path(name).glob("*.jinja")):
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".json":
                json.loads(text)
        except (ValueError, RecursionError):
            return f"{path.name} is damaged; download it again"
    return "a file is damaged, incomplete, or was written for another version"


def _hub_sentence(name: str, error: BaseException) -> str | None:
    """Return the message for an error of the hub, which transformers wraps in an `OSError`, or None."""
    while error.__cause__ is not None:
        error = error.__cause__
    login = "log in with `hf auth login` (older versions: `huggingface-cli login`)"
    page = f"https://huggingface.co/{name}"
    if isinstance(error, GatedRepoError):
        return f"'{name}' is a gated model: accept its license at {page} and {login}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"'{name}' is neither a local folder nor a public model on the hub; check the name, or, if private, {login}"
        )
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)):
        command = FAMILIES.look_up("download", name)
        script = "" if command is None else f" with `{command}`"
        return (
            f"'{name}' is not a local folder, it is not in the hub's cache, and the hub cannot be reached (no network, "
            f"or HF_HUB_OFFLINE is set): with a network, accept the license at {page} if it has one, {login} "
            f"and download it{script}"
        )
    return None
