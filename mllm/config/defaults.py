"""What a model type means where a config leaves it open."""

from __future__ import annotations

from dataclasses import replace

from mllm.config.schema import ModelArgs

SHIKRA_TYPES = ("shikra", "perceptionGPT")
"""The types whose projector trains, and that see images as padded squares."""
TEXT_TYPES = ("causal-lm", "seq2seq")
"""The types that read text alone."""
PERCEPTION_HEADS = {"box": {"type": "BoxHead"}, "mask": {"type": "MaskHead"}}


def with_defaults(args: ModelArgs) -> ModelArgs:
    """`args` with what its type decides where they say None; done twice it changes nothing more."""
    is_perception = args.type == "perceptionGPT"
    return replace(
        args,
        heads=PERCEPTION_HEADS if is_perception and not args.heads else args.heads,
        pad_to_square=args.type in SHIKRA_TYPES if args.pad_to_square is None else args.pad_to_square,
        fuse_vision_layers=is_perception if args.fuse_vision_layers is None else args.fuse_vision_layers,
    )
