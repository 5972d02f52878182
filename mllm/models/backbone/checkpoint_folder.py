"""Location of a checkpoint: a local folder with complete weights, or a name on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from mllm.errors import ConfigError, nearest_names
from mllm.family import FAMILIES
from mllm.models.backbone.weight_files import indexed_files
from mllm.run_files import ADAPTER, MODEL_INDEX, MODEL_WEIGHTS

WEIGHTS = (MODEL_WEIGHTS, MODEL_INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files of which a checkpoint has one. An index names the files of weights in several files."""


def find_checkpoint(name: str, with_weights: bool = True) -> str:
    """Return the local folder or the hub id of `name`. Raise `ConfigError` for a folder without complete weights.

    `with_weights=False` accepts a folder that contains only config and processor.

    `ORG/NAME` is a hub id unless such a folder or its parent folder exists. All other names are paths.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, with_weights)
        return str(folder)
    if folder.exists():
        raise ConfigError(f"model_name_or_path '{name}' is a file; set it to the checkpoint's folder")
    parts = Path(name).parts
    if len(parts) <= 2 and not name.startswith((".", "~", "/")) and parts[0] != "ckpt" and not Path(parts[0]).is_dir():
        return name
    raise ConfigError(f"there is no checkpoint in '{name}'{_similar_names(folder)}; {_download_hint(folder)}")


def _similar_names(folder: Path) -> str:
    """Return similar names in the same parent folder, as part of an error message."""
    names = [other.name for other in folder.parent.iterdir() if other.is_dir()] if folder.parent.is_dir() else []
    matches = nearest_names(folder.name, names)
    return f" (similar names in its parent folder: {', '.join(matches)})" if matches else ""


def _download_hint(folder: Path) -> str:
    """Return how to get the weights, as part of an error message."""
    if (command := FAMILIES.look_up("download", folder.name)) is not None:
        return f"get the weights with `{command}`, or try the config without them by --tiny"
    return "download it there (`hf download ORG/NAME --local-dir FOLDER`), or set it to a hub id ORG/NAME"


def _content(folder: Path) -> str:
    """Return what a folder without config.json contains, as part of an error message."""
    if (folder / "adapter_config.json").is_file():
        return "a LoRA adapter (set it as adapter_path)"
    if (folder / ADAPTER / "adapter_config.json").is_file():
        return f"a run (set adapter_path to its {ADAPTER}/, or merge it with `mllm merge`)"
    if (folder / "model_index.json").is_file():
        return "a diffusion model, which writes no text"
    if any(folder.glob("*.gguf")):
        return "weights for llama.cpp (GGUF), which cannot be trained"
    return "no config.json"


def _check_folder(folder: Path, with_weights: bool) -> None:
    """Raise `ConfigError` for a folder without config or complete weights, such as an interrupted download."""
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"'{folder}' contains {_content(folder)}, so it is not a checkpoint; {_download_hint(folder)}"
        )
    if not with_weights:
        return
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not weights:
        raise ConfigError(f"'{folder}' has a config.json but no weights ({WEIGHTS[0]}); {_download_hint(folder)}")
    if weights[0].name.endswith(".index.json"):
        files = indexed_files(weights[0])
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ConfigError(
                f"'{folder}' lacks {len(missing)} of {len(files)} weight files (first {missing[0]}): the download was "
                f"interrupted; {_download_hint(folder)}"
            )
