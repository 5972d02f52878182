"""Loading of checkpoints: find the folder, read config, processor and weights.

Errors that a user can cause raise `ConfigError` with one sentence: a missing folder or file, a license that was not
accepted, an architecture or a tokenizer file that the installed packages do not support.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from bitsandbytes.nn import Linear4bit
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoProcessor,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from mllm.errors import ConfigError, near
from mllm.family import FAMILIES
from mllm.models.backbone.streamed import STORED, Unstreamable, open_stored

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtype of full-precision weights for each value of `Hardware.precision`."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def find_checkpoint(name: str) -> str:
    """Return the local folder or the hub id of `name`. Raise `ConfigError` for a folder without complete weights.

    `ORG/NAME` is a hub id unless such a folder or its parent folder exists. All other names are paths.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    if folder.exists():
        raise ConfigError(f"model_name_or_path '{name}' is a file; give the checkpoint's folder")
    parts = Path(name).parts
    if len(parts) <= 2 and not name.startswith((".", "~", "/")) and parts[0] != "ckpt" and not Path(parts[0]).is_dir():
        return name
    raise ConfigError(f"there is no checkpoint in '{name}'{_beside(folder)}; {_how_to_get(folder)}")


def _beside(folder: Path) -> str:
    """Return similar names in the same parent folder, as part of an error message."""
    names = [other.name for other in folder.parent.iterdir() if other.is_dir()] if folder.parent.is_dir() else []
    matches = near(folder.name, names)
    return f" (near names beside it: {', '.join(matches)})" if matches else ""


def _how_to_get(folder: Path) -> str:
    """Return how to get the weights, as part of an error message."""
    if (command := FAMILIES.named("download", folder.name)) is not None:
        return f"get the weights with `{command}`, or try the config without them by --tiny"
    return "download it there (`hf download ORG/NAME --local-dir FOLDER`), or give a hub id ORG/NAME"


def _check_folder(folder: Path) -> None:
    """Raise `ConfigError` for a folder without config or complete weights, such as an interrupted download."""
    if not (folder / "config.json").is_file():
        what = "a LoRA adapter (that belongs into adapter_path)" if (folder / "adapter_config.json").is_file() else None
        raise ConfigError(
            f"'{folder}' holds {what or 'no config.json'}, so it is not a checkpoint; {_how_to_get(folder)}"
        )
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not weights:
        raise ConfigError(f"'{folder}' has a config.json but no weights ({WEIGHTS[0]}); {_how_to_get(folder)}")
    if weights[0].name.endswith(".index.json"):
        shards = set(json.loads(weights[0].read_text())["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise ConfigError(
                f"'{folder}' lacks {len(missing)} of {len(shards)} weight files (first {missing[0]}): the download was "
                f"interrupted; {_how_to_get(folder)}"
            )


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Convert errors of the Hugging Face libraries about the checkpoint `name` to `ConfigError`.

    Other errors are passed on with their traceback.
    """
    try:
        yield
    except ConfigError:
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
    return None


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
        command = FAMILIES.named("download", name)
        script = "" if command is None else f" with `{command}`"
        return (
            f"'{name}' is not a local folder, it is not in the hub's cache, and the hub cannot be reached (no network, "
            f"or HF_HUB_OFFLINE is set): with a network, accept the license at {page} if it has one, {login} "
            f"and download it{script}"
        )
    return None


def load_config(name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load the config of a checkpoint. It is read first, so it detects missing licenses and networks."""
    with explained(name):
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)


def load_processor(name: str, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """Load the processor of a checkpoint: tokenizer, image processor and chat template."""
    with explained(name):
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    if not isinstance(processor, ProcessorMixin):
        raise ConfigError(f"'{name}' has a tokenizer but no image processor (preprocessor_config.json is missing)")
    return processor


def quantization(
    config: PretrainedConfig, *, load_in_4bit: bool, load_in_8bit: bool, precision: str, keep: list[str]
) -> BitsAndBytesConfig | None:
    """Return the quantization of Linear layers at loading, or None for none or an already quantized checkpoint.

    `keep` lists prefixes of modules that are not quantized. Raise `ConfigError` if the checkpoint is already quantized
    in another way.
    """
    stored = config.to_dict().get("quantization_config")
    if stored is not None:
        stored = stored if isinstance(stored, dict) else stored.to_dict()
        bits = {4: stored.get("load_in_4bit"), 8: stored.get("load_in_8bit")}
        if (load_in_4bit and not bits[4]) or (load_in_8bit and not bits[8]):
            key = "load_in_4bit" if load_in_4bit else "load_in_8bit"
            raise ConfigError(
                f"model_args.{key}=True, but the checkpoint is already quantized otherwise "
                f"({stored.get('quant_method')}); remove {key}, or use the full-precision checkpoint"
            )
        logger.info("the checkpoint is already quantized (%s)", stored.get("quant_method"))
        return None
    if load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[precision],
            llm_int8_skip_modules=keep,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep) if load_in_8bit else None


def load_model(
    kind: Any,
    name: str,
    *,
    precision: str,
    device: str,
    quantization_config: BitsAndBytesConfig | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model by `kind.from_pretrained`, frozen, in evaluation mode. `kind` is a model class or an Auto class.

    Weights are stored in `precision`. Quantized weights are placed on `device` ('cuda': the GPU of this process), all
    others in host memory for the trainer to move. On the device `STORED`, large weights stay in their files.
    """
    options: dict[str, Any] = {"dtype": DTYPES[precision]}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if device == STORED:
        if trust_remote_code:
            raise Unstreamable("the checkpoint contains its own code")
        with explained(name):
            return open_stored(kind, name, load_config(name), **options)
    options["trust_remote_code"] = trust_remote_code
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
        options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", 0)) if device == "cuda" else "cpu"}
    with explained(name):
        model, report = kind.from_pretrained(name, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"the weight files of '{name}' lack {len(missing)} tensors of its architecture (first {missing[0]}): the "
            "checkpoint is incomplete or of another architecture"
        )
    # peft.prepare_model_for_kbit_training would also convert unquantized weights to fp32: 1.3 GB more for the
    # embedding of Gemma 3. Only freezing is needed here, because norms compute in fp32 in these families.
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On a CPU with AVX512-BF16, the first evaluation would reorder the weight permanently for a product without
            # gradient, so almost nothing would train after an evaluation, without an error.
            module.support_avx512bf16_for_cpu = False
    return model.eval()
