"""The steps that every model type shares: find a checkpoint, read its config, its processor and its weights.

What a user can cause ends in one sentence (`ConfigError`): a folder or a file that is not there, a license that was not
accepted, an architecture or a tokenizer file that the installed packages do not know.
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
"""`Hardware.precision` -> how full-precision weights are stored."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def find_checkpoint(name: str) -> str:
    """The complete local folder or the hub id that `name` means; raises `ConfigError` for a folder without weights.

    `ORG/NAME` is a hub id, unless such a folder or its parent folder exists; everything else is a path.
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
    """Near names in the same parent folder, as the middle of a sentence."""
    names = [other.name for other in folder.parent.iterdir() if other.is_dir()] if folder.parent.is_dir() else []
    matches = near(folder.name, names)
    return f" (near names beside it: {', '.join(matches)})" if matches else ""


def _how_to_get(folder: Path) -> str:
    if (command := FAMILIES.named("download", folder.name)) is not None:
        return f"get the weights with `{command}`, or try the config without them by --tiny"
    return "download it there (`hf download ORG/NAME --local-dir FOLDER`), or give a hub id ORG/NAME"


def _check_folder(folder: Path) -> None:
    """Refuses a folder that lacks its config or weights, as a download that was interrupted leaves it."""
    if not (folder / "config.json").is_file():
        what = "a LoRA adapter (that belongs into adapter_path)" if (folder / "adapter_config.json").is_file() else None
        raise ConfigError(f"'{folder}' holds {what or 'no config.json'}, so it is no checkpoint; {_how_to_get(folder)}")
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise ConfigError(f"'{folder}' has a config.json but no weights ({WEIGHTS[0]}); {_how_to_get(folder)}")
    if found[0].name.endswith(".index.json"):
        shards = set(json.loads(found[0].read_text())["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise ConfigError(
                f"'{folder}' lacks {len(missing)} of {len(shards)} weight files (first {missing[0]}): the download was "
                f"interrupted; {_how_to_get(folder)}"
            )


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns what the Hugging Face libraries raise about the checkpoint `name` into sentences (`ConfigError`).

    What none of the sentences fits passes through: it is a defect, and its traceback is wanted.
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
    text = str(error)
    if "untagged enum" in text:  # tokenizers: `ModelWrapper` up to 0.20, `ModelUntagged` since
        return (
            f"the tokenizer of '{name}' was written for newer packages than transformers {transformers.__version__} "
            f"and tokenizers {tokenizers.__version__}: run pip install --upgrade transformers tokenizers"
        )
    if isinstance(error, SafetensorError):
        return f"the weights of '{name}' cannot be read ({text}): a file is damaged or incomplete; download it again"
    if "trust_remote_code" in text:
        return f"'{name}' brings Python code of its own: if you trust it, set model_args.trust_remote_code=True"
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
    """Why the hub does not give a model; transformers wraps the reason in an `OSError`."""
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
            f"'{name}' is no local folder, it is not in the hub's cache, and the hub cannot be reached (no network, or "
            f"HF_HUB_OFFLINE is set): where there is a network, accept the license at {page} if it has one, {login} "
            f"and download it{script}"
        )
    return None


def load_config(name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a checkpoint; the first thing to be read, so it meets licenses and missing networks."""
    with explained(name):
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)


def load_processor(name: str, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """The processor of a checkpoint: tokenizer, image processor and chat template together."""
    with explained(name):
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    if not isinstance(processor, ProcessorMixin):
        raise ConfigError(f"'{name}' has a tokenizer but no image processor (preprocessor_config.json is missing)")
    return processor


def quantization(
    config: PretrainedConfig, *, load_in_4bit: bool, load_in_8bit: bool, precision: str, keep: list[str]
) -> BitsAndBytesConfig | None:
    """How Linear layers are quantized while they are loaded; None: not at all, or the checkpoint is so already.

    `keep` holds prefixes of modules that stay as they are. Raises `ConfigError` where the checkpoint is quantized
    otherwise than asked for.
    """
    stored = config.to_dict().get("quantization_config")
    if stored is not None:
        stored = stored if isinstance(stored, dict) else stored.to_dict()
        bits = {4: stored.get("load_in_4bit"), 8: stored.get("load_in_8bit")}
        if (load_in_4bit and not bits[4]) or (load_in_8bit and not bits[8]):
            asked = "load_in_4bit" if load_in_4bit else "load_in_8bit"
            raise ConfigError(
                f"model_args.{asked}=True, but the checkpoint is already quantized otherwise "
                f"({stored.get('quant_method')}); remove {asked}, or take the full-precision checkpoint"
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
    """The model `kind.from_pretrained` gives, frozen, in evaluation mode; `kind` is a model or an Auto class.

    Weights are stored as `precision` says. Quantized ones are placed on `device` at once ('cuda': this process's card),
    others stay in the machine's memory for the trainer to place; on the device `STORED` large ones stay in their files.
    """
    options: dict[str, Any] = {"dtype": DTYPES[precision]}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if device == STORED:
        if trust_remote_code:
            raise Unstreamable("the checkpoint brings code of its own")
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
    # peft.prepare_model_for_kbit_training would also copy every unquantized weight to fp32: 1.3 GB more for Gemma 3's
    # embedding alone. Freezing is all that is needed of it here: norms compute in fp32 in these families anyway.
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In its first evaluation on a CPU with AVX512-BF16 it would reorder its weight for good, for a product that
            # has no gradient: training after an evaluation would reach almost nothing, in silence.
            module.support_avx512bf16_for_cpu = False
    return model.eval()
