"""Checkpoints without weights: a folder with the config and the processor of a checkpoint, from `config.json` alone.

Where a checkpoint is not on this machine, its sizes are those in the `published.json` of a model family. A processor
that is absent is replaced by that of the family's tiny checkpoint, with the image size of the config: the number of
tokens of an image is right, and texts fill `max_length` anyway.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import ProcessorMixin

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError, nearest_names
from mllm.family import FAMILIES
from mllm.files import write_json
from mllm.run_files import MODEL_CONFIG, MODEL_WEIGHTS

MODELS = Path(__file__).resolve().parents[1] / "models"
PROCESSOR_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "preprocessor_config.json")
"""Files of which a checkpoint with a processor has one."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".msgpack", ".h5", ".index.json")
IDS = ("token_id", "token_index", "token_ids")
"""Ends of the names of token ids in a config."""


@dataclass(frozen=True)
class Published:
    """Sizes of a published checkpoint, as changes of the config of a tiny checkpoint with the same architecture."""

    names: tuple[str, ...]
    """Names on the Hugging Face Hub, without their owner."""
    tiny: str
    """Name of the tiny checkpoint."""
    parameters: int
    """Published number of parameters, with which a test compares the sizes."""
    not_built: int
    """Parameters of these that the model of transformers does not have, because nothing reads them."""
    config: dict[str, Any]
    """Changes of the config itself."""
    sections: dict[str, dict[str, Any]]
    """Changes of sections of the config, such as `text_config`."""
    images: dict[str, Any]
    """Changes of the processor and of its image processor."""
    stand_in: dict[str, Any]
    """Values for the vision tower of the tiny checkpoint; None: those of the config."""


def published_checkpoints() -> list[Published]:
    """Return the records of all model families."""
    records = []
    for file in sorted(MODELS.glob("*/published.json")):
        for row in json.loads(file.read_text(encoding="utf-8")):
            sections = {
                section: row[key]
                for key, section in {
                    "text": "text_config",
                    "vision": "vision_config",
                    "encoder": "encoder",
                    "decoder": "decoder",
                }.items()
                if key in row
            }
            records.append(
                Published(
                    names=tuple(row["names"]),
                    tiny=row["tiny"],
                    parameters=row["parameters"],
                    not_built=row.get("not_built", 0),
                    config=row.get("config", {}),
                    sections=sections,
                    images=row.get("images", {}),
                    stand_in=row.get("stand_in", row.get("vision", {})),
                )
            )
    return records


def without_weights(args: ModelArgs, folder: Path) -> ModelArgs:
    """Return `args` with checkpoints without weights, which are written to `folder`.

    Raises:
        ConfigError: The config of a checkpoint is neither on this machine nor published with a model family.
    """
    changes: dict[str, Any] = {"model_name_or_path": str(_write(args.model_name_or_path, args, folder / "base"))}
    tower = vars(args).get("vision_tower")
    if tower is not None:
        changes["vision_tower"] = str(_write(tower, args, folder / "tower"))
    if "pretrain_mm_mlp_adapter" in vars(args) and not Path(str(vars(args)["pretrain_mm_mlp_adapter"])).is_file():
        changes["pretrain_mm_mlp_adapter"] = None
    if args.adapter_path is not None and not Path(args.adapter_path).expanduser().exists():
        # An adapter that is not here is planned as a fresh one, which has the same size.
        changes |= {"adapter_path": None, "lora_r": args.lora_r or 16, "merge_lora": False}
    known = {item.name for item in fields(args)}
    return replace(args, **{key: value for key, value in changes.items() if key in known})


def _write(name: str, args: ModelArgs, folder: Path) -> Path:
    """Write the checkpoint `name` without weights to `folder`, and return the folder."""
    folder.mkdir(parents=True)
    (folder / MODEL_WEIGHTS).touch()  # the loader expects a file of weights, and does not read it here
    source = local_folder(name)
    if source is None:
        record = find_published(name)
        _write_stand_in(folder, record.tiny, record.stand_in, record)
        return folder
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            (folder / file.name).symlink_to(file.resolve())
    if not any((folder / file).is_file() for file in PROCESSOR_FILES):
        config = json.loads((source / MODEL_CONFIG).read_text(encoding="utf-8"))
        _write_stand_in(folder, _tiny_for(config, args, name), config.get("vision_config") or {}, config)
    return folder


def local_folder(name: str) -> Path | None:
    """Return the folder of a checkpoint with its `config.json`, also in the cache of the Hub; None: it is not here."""
    folder = Path(name).expanduser()
    if (folder / MODEL_CONFIG).is_file():
        return folder
    if folder.is_dir():
        raise ConfigError(f"'{name}' contains no {MODEL_CONFIG}, from which a plan is computed: put it there")
    if len(Path(name).parts) != 2 or name.startswith((".", "~", "/")):
        return None
    cached = try_to_load_from_cache(name, MODEL_CONFIG)
    return Path(cached).parent if isinstance(cached, str) else None


def find_published(name: str) -> Published:
    """Return the record of a checkpoint. Raise `ConfigError` without one."""
    records = {known.lower(): record for record in published_checkpoints() for known in record.names}
    own = Path(name).name.lower()
    if own in records:
        return records[own]
    known = [known for record in published_checkpoints() for known in record.names]
    similar = nearest_names(Path(name).name, known)
    raise ConfigError(
        f"the {MODEL_CONFIG} of '{name}' is not on this machine, and a plan needs it: download it with `hf download "
        f"{name} {MODEL_CONFIG} --local-dir FOLDER` and set model_args.model_name_or_path=FOLDER"
        + (f" (sizes of similar names are known: {', '.join(similar)})" if similar else "")
    )


def _tiny_for(config: dict[str, Any], args: ModelArgs, name: str) -> str:
    """Return the name of the tiny checkpoint with the architecture of a config."""
    architecture = config.get("model_type")
    names = {"llama": "llama", "clip": "clip", "clip_vision_model": "clip"}
    return names.get(str(architecture), FAMILIES.find(args.type, args.part).tiny_name(name))


def _write_stand_in(folder: Path, tiny: str, vision: dict[str, Any], source: Published | dict[str, Any]) -> None:
    """Write config and processor with the token ids of a tiny checkpoint to `folder`.

    Args:
        folder: The folder.
        tiny: Name of the tiny checkpoint.
        vision: Values of its vision tower on which the processor depends.
        source: The record of a published checkpoint, or the whole config of a checkpoint.
    """
    makers = {key: make for family in FAMILIES for key, make in family.tiny.items()}
    keys = ("image_size", "patch_size", "resolution")
    model, processor = makers[tiny](0, {}, {key: vision[key] for key in keys if key in vision})
    config = model.config.to_dict()
    if isinstance(source, Published):
        for section, values in source.sections.items():
            config[section] = _resized(config[section], values)
        config = _resized(config, source.config)
        _change(processor, source.images)
    else:
        config = _with_ids(source, config)
    processor.save_pretrained(folder)
    (folder / MODEL_CONFIG).unlink(missing_ok=True)
    write_json(folder / MODEL_CONFIG, {**config, "architectures": [type(model).__name__]})


def _resized(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a config with other values. The kinds of its layers are those that transformers derives from them."""
    derived = ("layer_types", "per_layer_config")
    kept = {key: value for key, value in config.items() if key not in derived}
    return {**kept, **values}


def _change(processor: Any, values: dict[str, Any]) -> None:
    """Set attributes of a processor and of its image processor, where they exist."""
    parts = [processor, *([processor.image_processor] if isinstance(processor, ProcessorMixin) else [])]
    for part in parts:
        for key, value in values.items():
            if key in vars(part):
                setattr(part, key, value)


def _with_ids(config: dict[str, Any], tiny: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the token ids of a tiny checkpoint, also in its sections."""
    changed = dict(config)
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(tiny.get(key), dict):
            changed[key] = _with_ids(value, tiny[key])
        elif key.endswith(IDS) and key in tiny:
            changed[key] = tiny[key]
    return changed
