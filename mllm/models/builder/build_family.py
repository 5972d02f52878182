"""Default builder: a model and its encoder from the record of its type."""

from __future__ import annotations

from mllm.config.defaults import refuse_absent_keys, with_defaults
from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.family import FAMILIES, Family
from mllm.models.backbone.checkpoint_folder import find_checkpoint
from mllm.models.backbone.loading import load_config
from mllm.structures import Bundle


def build_model(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Return the model and the encoder of any type, as its record describes them."""
    args = with_defaults(args)
    refuse_absent_keys(args)
    family = FAMILIES.find(args.type, args.part)
    refuse_other_architectures(family, args)
    processor = family.processor(args)
    backbone = family.load(args, hardware, processor)
    model = family.assemble(family, backbone, processor, args, hardware)
    return Bundle(model, family.encoder(args, processor))


def refuse_other_architectures(family: Family, args: ModelArgs) -> None:
    """Raise `ConfigError` for a checkpoint of an architecture that the family cannot load."""
    name = find_checkpoint(args.model_name_or_path)
    model_type = load_config(name, trust_remote_code=args.trust_remote_code).model_type
    if family.model_types and model_type not in family.model_types:
        raise ConfigError(
            f"type='{args.type}' reads {', '.join(sorted(family.model_types))} checkpoints, but model_name_or_path "
            f"'{name}' is a '{model_type}' model: use type='{FAMILIES.for_architecture(model_type).type}'"
        )
