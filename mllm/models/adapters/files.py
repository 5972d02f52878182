"""Adapters on disk: finding one, reading it, putting it on a model under today's names, writing one."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.adapters.targets import log_targets, pattern_of
from mllm.models.backbone.loading import explained

logger = logging.getLogger(__name__)

KEY = re.compile(r"base_model\.model\.(?P<module>.+?)\.(?P<part>lora_\w+(\.weight)?)")
HEADS, SETTINGS = "heads.safetensors", "mllm.json"
"""What a run of ours writes beside PEFT's files: what else trained, and how samples were encoded."""
RENAMES = (
    (r"^language_model\.model\.", "model.language_model."),  # transformers 4.50 and 4.51
    (r"^(model\.)?vision_tower\.vision_model\.", "model.vision_tower."),  # 4.50 to 4.57
    (r"^model\.layers\.", "model.language_model.layers."),  # language models before they got a vision tower beside them
    (r"^", "model."),
)
"""How names of modules in older versions of transformers become today's; the first that the model has is taken."""


@dataclass(frozen=True)
class SavedAdapter:
    """A LoRA adapter as it lies on disk."""

    source: str
    """The folder or the name on the Hugging Face Hub, for messages."""
    config: LoraConfig
    tensors: dict[str, Tensor]


def read_adapter(path: str | Path) -> SavedAdapter:
    """The LoRA adapter in a folder, or under a name on the Hugging Face Hub.

    Raises `ConfigError` where it cannot be found or read, is no LoRA, changes nothing, or holds NaN.
    """
    folder = find_adapter(path)
    try:
        # Read as it is too: LoraConfig fills missing fields with defaults, and the rank must not be one of them.
        values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        config = LoraConfig.from_pretrained(str(folder))
        if (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        else:
            tensors = torch.load(folder / WEIGHTS_NAME, map_location="cpu", weights_only=True)
    except (OSError, ValueError, TypeError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise ConfigError(f"adapter_path = '{path}' cannot be read: {error}") from error
    if values.get("peft_type") != "LORA" or "r" not in values:
        raise ConfigError(f"{folder / CONFIG_NAME} describes no LoRA adapter (peft_type = {values.get('peft_type')})")
    _check_content(str(path), config, tensors)
    return SavedAdapter(str(path), config, tensors)


def find_adapter(path: str | Path) -> Path:
    """The folder of an adapter, fetched from the Hugging Face Hub where `path` names nothing on this machine."""
    folder = Path(path)
    if not folder.is_dir():
        # `ckpt/flare25-medgemma` reads like a name on the Hub; where its parent is a folder here, a folder was meant.
        is_local = folder.parts[:1] == ("ckpt",) or folder.exists() or folder.is_absolute() or folder.parent.is_dir()
        if is_local or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            raise ConfigError(
                f"adapter_path = '{path}' is no folder; download adapters with scripts/download_medgemma.sh, or name "
                "the adapter/ folder of an earlier run"
            )
        with explained(str(path)):
            files = [CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, HEADS, SETTINGS]
            folder = Path(snapshot_download(str(path), allow_patterns=files))
    if not holds_lora(folder) and (folder / HEADS).is_file():
        return folder
    if not holds_lora(folder):
        raise ConfigError(f"adapter_path = '{path}' holds no {CONFIG_NAME}: it is no PEFT adapter")
    if not any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise ConfigError(f"adapter_path = '{path}' holds no {SAFETENSORS_WEIGHTS_NAME}: its weights are missing")
    return folder


def holds_lora(folder: Path) -> bool:
    """Whether an adapter's folder holds a LoRA; a run may have trained heads or a projector alone."""
    return (folder / CONFIG_NAME).is_file()


def _check_content(path: str, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
    """Refuse what cannot be continued exactly, and what would change nothing."""
    strange = [key for key in tensors if not KEY.fullmatch(key)]
    if strange or config.modules_to_save:
        more = ", ".join([*(config.modules_to_save or []), *strange][:3])
        raise ConfigError(
            f"adapter_path = '{path}' holds more than LoRA ({more}): "
            "whole modules beside the adapter are not supported; merge it into its base with the tool that made it"
        )
    # PiSSA, OLoRA, CorDA and LoftQ change the base when they begin, so their adapters fit no base that lies on disk.
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal", "eva"):
        raise ConfigError(
            f"adapter_path = '{path}' began as {config.init_lora_weights}, which changed its base too; convert it to "
            "plain LoRA first (PEFT: path_initial_model_for_weight_conversion)"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ConfigError(f"adapter_path = '{path}' holds NaN or infinity; take an earlier checkpoint")
    if not any(bool(tensor.any()) for key, tensor in tensors.items() if "lora_B" in key):
        raise ConfigError(f"adapter_path = '{path}' changes nothing: all its B matrices are zero, it was never trained")


def fitted(saved: SavedAdapter, model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Each tensor with the name that its module has in `model`, whichever version of transformers wrote it.

    Gives (name of the module, rest of the key, tensor). Raises `ConfigError` where `model` has no such module.
    """
    known = {name for name, _ in model.named_modules()}
    for key, tensor in saved.tensors.items():
        match = KEY.fullmatch(key)
        assert match is not None
        name = match["module"]
        renamed = [name, *(re.sub(old, new, name, count=1) for old, new in RENAMES if re.search(old, name))]
        found = next((candidate for candidate in renamed if candidate in known), None)
        if found is None:
            raise ConfigError(
                f"adapter_path = '{saved.source}' does not fit this model: it adapts {name}, which a "
                f"{type(model).__name__} does not have; it was trained on '{saved.config.base_model_name_or_path}'"
            )
        yield found, match["part"], tensor


def load_adapter(
    model: PreTrainedModel | PeftModel,
    saved: SavedAdapter,
    name: str,
    targets: Mapping[str, str],
    *,
    lora_dropout: float = 0.0,
) -> PeftModel:
    """`model` with a saved adapter under `name`, trainable, every tensor of it restored exactly.

    A `model` that has adapters keeps them. `targets` only name the towers in the log. Raises `ConfigError` where
    adapter and model do not fit.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    tensors, modules = {}, set()
    for module, part, tensor in fitted(saved, base):
        tensors[f"base_model.model.{module}.{part}"] = tensor
        modules.add(module)
    config = copy.deepcopy(saved.config)
    for pattern in config.alpha_pattern or {}:
        if not any(re.match(rf"(.*\.)?({pattern})$", module) for module in modules):
            raise ConfigError(f"adapter_path = '{saved.source}': alpha_pattern '{pattern}' matches none of its modules")
    # The tensors say exactly where it sits; patterns written for older names of modules do not.
    config.target_modules = pattern_of(modules, base)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.init_lora_weights = True
    config.lora_dropout = lora_dropout
    config.inference_mode = False
    if isinstance(model, PeftModel):
        adapted = model
        adapted.add_adapter(name, config)
    else:
        adapted = PeftModel(model, config, name)
    _check_shapes(saved, tensors, adapter_tensors(adapted, name))
    set_peft_model_state_dict(adapted, tensors, adapter_name=name)
    loaded = adapter_tensors(adapted, name)
    assert all(torch.equal(loaded[key].cpu(), tensor.float()) for key, tensor in tensors.items())
    logger.info("adapter %s: rank %d, alpha %g", saved.source, config.r, config.lora_alpha)
    log_targets(modules, targets)
    return adapted


def _check_shapes(saved: SavedAdapter, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        problem = f"{missing[0]} is missing" if missing else f"{unexpected[0]} has no place"
        raise ConfigError(f"adapter_path = '{saved.source}' is not whole: {problem}; its files belong to two adapters")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ConfigError(
                f"adapter_path = '{saved.source}' does not fit this model: {key} has shape {tuple(tensor.shape)}, the "
                f"model needs {tuple(expected[key].shape)}; it was trained on '{saved.config.base_model_name_or_path}'"
            )


def adapter_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    """The adapter's tensors under the keys of PEFT's format; never looks for the base on the Hub."""
    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def write_adapter(folder: str | Path, tensors: dict[str, Tensor], config: LoraConfig) -> Path:
    """Write an adapter's two files in PEFT's format into `folder`, whole or not at all; other files there stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".adapter-") as temporary:
        config.save_pretrained(temporary)
        copies = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
        save_file(copies, Path(temporary, SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pt"})
        for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
            os.replace(Path(temporary, name), folder / name)
    return folder
