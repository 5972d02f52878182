"""Messages for the errors of the Hugging Face libraries that a user can cause.

Such errors are a license that was not accepted, a missing network, a damaged file, and an architecture or a tokenizer
file that the installed packages do not support.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from mllm.errors import ConfigError, UserError, is_out_of_memory, missing_package
from mllm.family import FAMILIES
from mllm.models.backbone.streamed import Unstreamable

logger = logging.getLogger(__name__)
NO_TOKENIZER = "lacks the files of its tokenizer (tokenizer.json)"
COMPLETE = "download the whole checkpoint, or copy them from the model that it was trained from"
LOGIN = "log in with `hf auth login` (older versions: `huggingface-cli login`)"


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Convert errors of the Hugging Face libraries about the checkpoint `name` to `ConfigError`.

    Errors of memory and of the file system are passed on, and `Unstreamable`, which makes the caller load in another
    way.
    """
    try:
        yield
    except (UserError, Unstreamable):
        raise
    except Exception as error:
        message = _message(name, error)
        if message is None:
            raise
        raise ConfigError(message) from error


def _message(name: str, error: Exception) -> str | None:
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
    if (missing := _missing_files(text)) is not None:
        return f"'{name}' {missing}"
    if "attn_implementation" in text or "FlashAttention" in text or "flash_attn" in text:
        return f"model_args.attn_implementation cannot be used with '{name}': {' '.join(text.split())}"
    if (package := missing_package(error)) is not None:
        return f"'{name}' {package}"
    if isinstance(error, OSError) and error.errno is None:
        return _hub_message(name, error) or f"'{name}' cannot be loaded: {' '.join(text.split())}"
    if isinstance(error, OSError) or is_out_of_memory(error):
        return None
    # For a damaged file, the libraries raise errors of nearly any type.
    return (
        f"'{name}' cannot be loaded by transformers {transformers.__version__} ({type(error).__name__}: "
        f"{' '.join(text.split())[:300]}): {_damaged_file(name)}"
    )


def _missing_files(text: str) -> str | None:
    """Return what a checkpoint lacks, if the text of an error says so: its config, or files of processor or tokenizer.

    The error of the hub itself has other texts.
    """
    if "does not appear to have a file named config.json" in text:
        return (
            "has no config.json, so it is not a checkpoint of transformers (a LoRA adapter, GGUF files and diffusion "
            "models have none): choose the model that it was made from"
        )
    if "Can't load image processor" in text or "Can't load feature extractor" in text:
        return f"lacks the files of its processor (processor_config.json or preprocessor_config.json): {COMPLETE}"
    if "Couldn't instantiate the backend tokenizer" in text:
        return f"{NO_TOKENIZER}: {COMPLETE}"
    return None


def refuse_empty_tokenizer(name: str, tokenizer: Any) -> None:
    """Raise `ConfigError` for a tokenizer of special tokens alone, which transformers makes if its files are absent."""
    if len(tokenizer) - len(tokenizer.get_added_vocab()) <= 1:
        raise ConfigError(f"'{name}' {NO_TOKENIZER}: {COMPLETE}")


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


def _hub_message(name: str, error: BaseException) -> str | None:
    """Return the message for an error of the hub, which transformers wraps in an `OSError`, or None."""
    chain = list(_chain(error))
    page = f"https://huggingface.co/{name}"
    if any(isinstance(cause, GatedRepoError) for cause in chain):
        return f"'{name}' is a gated model: accept its license at {page} and {LOGIN}"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
        return (
            f"'{name}' is neither a local folder nor a public model on the hub; check the name, or, if private, {LOGIN}"
        )
    if any(isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)) for cause in chain):
        return _unreachable_hub_message(name)
    return None


def _unreachable_hub_message(name: str) -> str:
    """Return the message for a hub that cannot be reached."""
    command = FAMILIES.look_up("download", name)
    script = "" if command is None else f" with `{command}`"
    return (
        f"'{name}' is not a local folder, it is not in the hub's cache, and the hub cannot be reached (no network, "
        f"or HF_HUB_OFFLINE is set): with a network, accept the license at https://huggingface.co/{name} if it has "
        f"one, {LOGIN} and download it{script}"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes. The error of the hub is between that of transformers and that of the network."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def check_hub(name: str, file: str) -> None:
    """Raise `ConfigError` if a checkpoint is on the hub only and the hub does not answer one request.

    Without this request, the hub's library repeats its own for more than 20 seconds before it fails.

    Args:
        name: Local folder or name on the hub.
        file: File of the checkpoint; if the cache has it, the hub is not asked.
    """
    if Path(name).is_dir():
        return
    try:
        if not isinstance(try_to_load_from_cache(name, file), str):
            get_hf_file_metadata(hf_hub_url(name, file), timeout=10)
    except (HfHubHTTPError, HFValidationError) as answer:  # the loading functions report what is wrong
        logger.debug("the hub has no %s of '%s': %s", file, name, answer)
    except Exception as error:  # the class depends on the HTTP client that the hub's library uses
        raise ConfigError(_unreachable_hub_message(name)) from error
