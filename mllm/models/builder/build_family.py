"""Default builder: a model and its encoder from the record of its type."""

from __future__ import annotations

from mllm.config.defaults import refuse_absent_keys, with_defaults
from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.config.trainable import trained_parts
from mllm.errors import ConfigError
from mllm.family import FAMILIES, Family
from mllm.models.adapters.files import find_adapter, holds_lora
from mllm.models.adapters.full import absent_tower
from mllm.models.backbone.loading import load_config
from mllm.models.builder.build_options import checkpoint_of
from mllm.protocols import Bundle


def build_model(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Return the model and the encoder of any type, as its record describes them."""
    args = with_defaults(args)
    refuse_absent_keys(args)
    family = FAMILIES.find(args.type, args.part)
    refuse_other_architectures(family, args)
    refuse_untrained_lora(args)
    refuse_absent_towers(family, args)
    processor = family.processor(args)
    backbone = family.load(args, hardware, processor)
    model = family.assemble(family, backbone, processor, args, hardware)
    return Bundle(model, family.encoder(args, processor))


def refuse_absent_towers(family: Family, args: ModelArgs) -> None:
    """Raise `ConfigError` for a tower in `trainable` that a model of text lacks, before its weights are loaded."""
    named = set() if isinstance(args.trainable, str) else set(args.trainable) - {"language"}
    if family.reads_images or family.skeleton is None or not named:
        return
    model = family.skeleton(args)
    if absent := sorted(named - family.towers(model).keys()):
        raise ConfigError(absent_tower(absent[0], model))


def refuse_untrained_lora(args: ModelArgs) -> None:
    """Raise `ConfigError` for a LoRA in `adapter_path` if `args` train none: it would neither train nor be merged."""
    if args.adapter_path is None or args.merge_lora or trained_parts(args).has_lora:
        return
    if holds_lora(find_adapter(args.adapter_path)):
        raise ConfigError(
            f"adapter_path = '{args.adapter_path}' contains a LoRA, and model_args train none: set merge_lora=True to "
            "merge it into the weights first"
        )


def refuse_other_architectures(family: Family, args: ModelArgs) -> None:
    """Raise `ConfigError` for a checkpoint of an architecture that the family cannot load."""
    name = checkpoint_of(args)
    model_type = load_config(name, trust_remote_code=args.trust_remote_code).model_type
    if family.model_types and model_type not in family.model_types:
        raise ConfigError(
            f"type='{args.type}' reads {', '.join(sorted(family.model_types))} checkpoints, but model_name_or_path "
            f"'{name}' is a '{model_type}' model: use type='{FAMILIES.for_architecture(model_type).type}'"
        )
