"""Finding, reading and writing of adapter files, and their loading into a model under its current module names."""

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
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.adapters.peft_targets import names_as_written
from mllm.models.adapters.targets import log_targets, pattern_of
from mllm.models.adapters.written import save_compared
from mllm.models.backbone.load_errors import check_hub, explained
from mllm.run_files import SETTINGS, TRAINED

logger = logging.getLogger(__name__)

KEY = re.compile(r"base_model\.model\.(?P<module>.+?)\.(?P<part>lora_\w+(\.weight)?)")
RENAMES = (
    (r"^language_model\.model\.", "model.language_model."),  # transformers 4.50 and 4.51
    (r"^(model\.)?vision_tower\.vision_model\.", "model.vision_tower."),  # 4.50 to 4.57
    (r"^model\.layers\.", "model.language_model.layers."),  # a language model without vision tower
    (r"^", "model."),
)
"""Module names of older versions of transformers and their replacements. The first name in the model is used."""

_DAMAGED = (UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class SavedAdapter:
    """A LoRA adapter read from disk."""

    source: str
    """Folder or name on the Hugging Face Hub, for messages."""
    config: LoraConfig
    tensors: dict[str, Tensor]


def read_adapter(path: str | Path) -> SavedAdapter:
    """Read the LoRA adapter in a folder or on the Hugging Face Hub.

    Raise `ConfigError` if it cannot be found or read, is not a LoRA, has no effect, or contains non-finite values.
    """
    folder = find_adapter(path)
    try:
        # Also read as JSON: LoraConfig fills missing fields with defaults, and a missing rank must be refused.
        values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        config = LoraConfig.from_pretrained(str(folder))
        if (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        else:
            tensors = torch.load(folder / WEIGHTS_NAME, map_location="cpu", weights_only=True)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, *_DAMAGED) as error:
        raise ConfigError(f"adapter_path = '{path}' cannot be read: {error}") from error
    if values.get("peft_type") != "LORA" or "r" not in values:
        raise ConfigError(f"{folder / CONFIG_NAME} describes no LoRA adapter (peft_type = {values.get('peft_type')})")
    _check_content(str(path), config, tensors)
    return SavedAdapter(str(path), config, tensors)


def find_adapter(path: str | Path) -> Path:
    """Return the folder of an adapter. It is downloaded from the Hugging Face Hub if `path` is not a local folder."""
    folder = Path(path)
    if not folder.is_dir():
        # `ckpt/flare25-medgemma` could be a name on the Hub; if its parent folder exists, it is a local path.
        is_local = folder.parts[:1] == ("ckpt",) or folder.exists() or folder.is_absolute() or folder.parent.is_dir()
        if is_local or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            raise ConfigError(
                f"adapter_path = '{path}' is not a folder; download adapters with scripts/download_medgemma.sh, or use "
                "the adapter/ folder of an earlier run"
            )
        with explained(str(path)):
            check_hub(str(path), CONFIG_NAME)
            files = [CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, TRAINED, SETTINGS]
            folder = Path(snapshot_download(str(path), allow_patterns=files))
    if not holds_lora(folder) and (folder / TRAINED).is_file():
        return folder
    if not holds_lora(folder):
        raise ConfigError(f"adapter_path = '{path}' contains no {CONFIG_NAME}: it is not a PEFT adapter")
    if not any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise ConfigError(f"adapter_path = '{path}' contains no {SAFETENSORS_WEIGHTS_NAME}: its weights are missing")
    return folder


def holds_lora(folder: Path) -> bool:
    """Return True if an adapter folder contains a LoRA. A run may have trained heads or a projector only."""
    return (folder / CONFIG_NAME).is_file()


def _check_content(path: str, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
    """Raise `ConfigError` for an adapter that cannot be restored exactly or that has no effect."""
    unknown_keys = [key for key in tensors if not KEY.fullmatch(key)]
    if unknown_keys or config.modules_to_save:
        modules = config.modules_to_save or []
        if not isinstance(modules, list):
            modules = [f"modules_to_save = {modules}"]
        names = ", ".join([*modules, *unknown_keys][:3])
        raise ConfigError(
            f"adapter_path = '{path}' contains more than LoRA ({names}): "
            "modules trained in full are not supported; merge it into its base with the program that wrote it"
        )
    # PiSSA, OLoRA, CorDA and LoftQ change the base at initialization, so their adapters fit no checkpoint on disk.
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal", "eva"):
        raise ConfigError(
            f"adapter_path = '{path}' was initialized by {config.init_lora_weights}, which also changed its base; "
            "convert it to plain LoRA first (PEFT: path_initial_model_for_weight_conversion)"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ConfigError(f"adapter_path = '{path}' contains NaN or infinity; use an earlier checkpoint")
    if not any(bool(tensor.any()) for key, tensor in tensors.items() if "lora_B" in key):
        raise ConfigError(f"adapter_path = '{path}' has no effect: all its B matrices are zero, it was never trained")


def fitted(saved: SavedAdapter, model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (module name in `model`, parameter name in the module, tensor), for names of any transformers version.

    Raise `ConfigError` if `model` has no such module.
    """
    known = {name for name, _ in model.named_modules()}
    for key, tensor in saved.tensors.items():
        match = KEY.fullmatch(key)
        assert match is not None
        name = match["module"]
        renamed = [name, *(re.sub(old, new, name, count=1) for old, new in RENAMES if re.search(old, name))]
        current = next((candidate for candidate in renamed if candidate in known), None)
        if current is None:
            raise ConfigError(
                f"adapter_path = '{saved.source}' does not fit this model: it adapts {name}, which a "
                f"{type(model).__name__} does not have; it was trained on '{saved.config.base_model_name_or_path}'"
            )
        yield current, match["part"], tensor


def load_adapter(
    model: PreTrainedModel | PeftModel,
    saved: SavedAdapter,
    name: str,
    targets: Mapping[str, str],
    *,
    lora_dropout: float = 0.0,
) -> PeftModel:
    """Return `model` with a saved adapter under `name`, trainable, with every tensor restored exactly.

    Existing adapters stay. `targets` name the towers in the log. Raise `ConfigError` if adapter and model do not fit.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    layers = dict(base.named_modules())
    tensors, modules = {}, set()
    for module, part, tensor in fitted(saved, base):
        tensors[f"base_model.model.{module}.{part}"] = tensor
        modules.add(module)
    config = copy.deepcopy(saved.config)
    for pattern in config.alpha_pattern or {}:
        if not any(re.match(rf"(.*\.)?({pattern})$", module) for module in modules):
            raise ConfigError(f"adapter_path = '{saved.source}': alpha_pattern '{pattern}' matches none of its modules")
    # Targets are taken from the tensors, since patterns may be written for older module names.
    config.target_modules = pattern_of(modules, base)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.init_lora_weights = True
    config.lora_dropout = lora_dropout
    config.inference_mode = False
    with names_as_written():
        if isinstance(model, PeftModel):
            adapted = model
            adapted.add_adapter(name, config)
        else:
            adapted = PeftModel(model, config, name)
    _check_shapes(saved, tensors, adapter_tensors(adapted, name))
    with names_as_written():
        set_peft_model_state_dict(adapted, tensors, adapter_name=name)
    loaded = adapter_tensors(adapted, name)
    assert all(torch.equal(loaded[key].cpu(), tensor.float()) for key, tensor in tensors.items())
    logger.info("adapter %s: rank %d, alpha %g", saved.source, config.r, config.lora_alpha)
    if not isinstance(model, PeftModel):  # layers with an adapter are no longer those of the base
        log_targets(modules, targets, layers)
    return adapted


def _check_shapes(saved: SavedAdapter, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise `ConfigError` if the tensors of an adapter differ in name or shape from those that the model expects."""
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        problem = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is unexpected"
        raise ConfigError(
            f"adapter_path = '{saved.source}' is inconsistent: {problem}; its two files belong to different adapters"
        )
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ConfigError(
                f"adapter_path = '{saved.source}' does not fit this model: {key} has shape {tuple(tensor.shape)}, the "
                f"model needs {tuple(expected[key].shape)}; it was trained on '{saved.config.base_model_name_or_path}'"
            )


def adapter_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    """Return the tensors of an adapter under the keys of PEFT's format, without network access."""
    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def write_adapter(folder: str | Path, tensors: dict[str, Tensor], config: LoraConfig) -> Path:
    """Write the two files of an adapter in PEFT's format into `folder`, atomically. Other files in it stay.

    The tensors are read back. Raise `ConfigError` if they differ from `tensors`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".adapter-") as temporary:
        config.save_pretrained(temporary)
        save_compared(Path(temporary, SAFETENSORS_WEIGHTS_NAME), tensors)
        for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
            os.replace(Path(temporary, name), folder / name)
    return folder
