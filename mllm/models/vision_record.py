"""Records of vision parts: a vision tower and its projector, loaded without the language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mllm.family import Family, LazyFunction

FULL_PRECISION = ["multi_modal_projector"]
"""Modules that stay in full precision; an empty list would let transformers choose them."""


def vision_record(
    type: str,
    options: type,
    *,
    load: Callable[..., Any],
    towers: Mapping[str, str],
    layers: str,
    model_types: frozenset[str],
    **changes: Any,
) -> Family:
    """Return the record that a type uses with `part='vision'`.

    `towers` are prefixes of module names, `layers` is the path of the tower's sequence of layers, and `changes` are
    further fields of `Family`.
    """
    fields: dict[str, Any] = dict(
        processor=LazyFunction("mllm.models.builder.build_vision_part:load_processor"),
        encoder=LazyFunction("mllm.models.builder.build_vision_part:build_encoder"),
        skeleton=None,
        cannot_pack="a vision tower reads no text",
        assemble=LazyFunction("mllm.models.builder.build_vision_part:assemble"),
        lora_targets=LazyFunction("mllm.models.builder.build_vision_part:vision_targets"),
        keep_unquantized=lambda bits, towers: FULL_PRECISION,
        unsupported_keys=frozenset({"image_size", "image_token_len"}),
        hub_task="image-feature-extraction",
        log_details=LazyFunction("mllm.models.gemma3n.ncore_log:log_details"),
        show_start=LazyFunction("mllm.models.gemma3n.ncore_log:show_start"),
        tiny={},
    )
    fields |= dict(type=type, options=options, load=load, layers=layers, model_types=model_types)
    return Family(towers=lambda model: towers, **{**fields, **changes})
