"""Towers and LoRA targets of any model that reads images, found from its modules."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.models.adapters.read_layers import is_read
from mllm.models.adapters.targets import derived_targets, matching, pattern_of

PROJECTORS = (
    "multi_modal_projector",
    "projector",
    "connector",
    "merger",
    "aligner",
    "embed_vision",
    "modality_projection",
)
"""Names in transformers of the module between vision and language; some models have none."""


def find_towers(model: PreTrainedModel) -> dict[str, str]:
    """Return the module prefixes of projector, vision and language.

    The projector comes first, since it may be inside the vision tower. A model that projects patches without a tower
    (Gemma 4 unified) has no 'vision'. Raise `ConfigError` where a part is not found, or the model reads no images.
    """
    refuse_missing_output(model)
    names = {module: name for name, module in model.named_modules()}
    towers = {**find_vision_parts(model), "language": names[model.get_decoder()]}
    parts = ", ".join(name for name, _ in model.base_model.named_children())
    if len(towers) == 1 and model.config.to_dict().get("vision_config", {}) is None:
        text_type = FAMILIES.for_architecture(model.config.get_text_config().model_type).type
        raise ConfigError(
            f"this {type(model).__name__} has no vision tower (vision_config in its config.json is empty): use "
            f"type='{text_type}' to train it on text"
        )
    missing = "vision" if len(towers) == 1 else "language"
    if len(towers) == 1 or towers["language"] in ("", names[model.base_model]):
        raise ConfigError(
            f"the {missing} model of {type(model).__name__} cannot be found among its parts ({parts}), so this "
            "architecture is not supported; choose a checkpoint of another one"
        )
    return towers


def refuse_missing_output(model: PreTrainedModel) -> None:
    """Raise `ConfigError` for a model without an output layer: BLIP names none, and that of FSMT is an embedding."""
    output = model.get_output_embeddings()
    if output is None or isinstance(output, nn.Embedding):
        raise ConfigError(
            f"{type(model).__name__} has no output layer of its own, which the loss of an answer needs, so this "
            "architecture is not supported; choose a checkpoint of another one"
        )


def find_vision_parts(model: PreTrainedModel) -> dict[str, str]:
    """Return the module prefixes of projector and vision tower; empty for a model of text."""
    names = {module: name for name, module in model.named_modules()}
    tower, towers = model.get_encoder(modality="image"), {}
    if isinstance(tower, PreTrainedModel) and tower is model.get_encoder():
        inner = tower.get_encoder(modality="image")  # T5Gemma 2 has its vision tower in the encoder of text
        tower = None if inner is tower else inner
    if tower is not None and tower not in (model, model.base_model):
        towers["vision"] = names[tower]
    projector = next((name for name in names.values() if name.rpartition(".")[2] in PROJECTORS), None)
    return towers if projector is None else {"projector": projector, **towers}


def find_targets(model: PreTrainedModel) -> dict[str, str]:
    """Return patterns of the Linear layers of 'language' and 'vision' of any model."""
    return targets_in(model, find_towers(model))


def targets_in(model: PreTrainedModel, towers: Mapping[str, str]) -> dict[str, str]:
    """Return patterns of the Linear layers inside `towers`.

    Vision layers after the one that the projector reads (in LLaVA the last but one) are left out: they receive no
    gradient.
    """
    targets = derived_targets(model, towers)
    if "vision" in targets:
        read = {name for name in matching(targets["vision"], model) if is_read(model, name)}
        targets["vision"] = pattern_of(read, model)
    return targets
