"""Config of T5Gemma in transformers for the dimensions of a checkpoint, and the dimensions of a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import T5GemmaConfig, T5GemmaModuleConfig

from mllm.errors import ConfigError
from mllm.models.t5gemma.layout import DECODER, ENCODER
from mllm.models.t5gemma.sizes import SIZES, Dimensions, Stack
from mllm.models.t5gemma.tokenizer import FIXED_IDS


def build_config(dimensions: Dimensions, dtype: str, end_ids: Sequence[int]) -> T5GemmaConfig:
    """Return the config of transformers.

    Softcaps, windows, RoPE and norms are equal in all published sizes. `end_ids` are the tokens that end an answer.
    """
    ids = dict(bos_token_id=FIXED_IDS["<bos>"], pad_token_id=FIXED_IDS["<pad>"], eos_token_id=list(end_ids))
    kind: Any = T5GemmaConfig  # the signatures lack the common arguments of configs
    config: T5GemmaConfig = kind(
        encoder=_stack_config(dimensions.encoder, dimensions.rows, ids),
        decoder=_stack_config(
            dimensions.decoder, dimensions.rows, ids, cross_attention_hidden_size=dimensions.encoder.width
        ),
        vocab_size=dimensions.rows,
        architectures=["T5GemmaForConditionalGeneration"],
        dtype=dtype,
        **ids,
    )
    return config


def _stack_config(stack: Stack, rows: int, ids: dict[str, Any], **more: Any) -> T5GemmaModuleConfig:
    """Return the config of an encoder or a decoder.

    Values that are not named, such as the window, are the defaults of transformers, which equal those in Flax.
    """
    kind: Any = T5GemmaModuleConfig
    config: T5GemmaModuleConfig = kind(
        vocab_size=rows,
        hidden_size=stack.width,
        intermediate_size=stack.hidden,
        num_hidden_layers=stack.layers,
        num_attention_heads=stack.heads,
        num_key_value_heads=stack.kv_heads,
        head_dim=stack.head_dim,
        # The Flax model multiplies queries by head_dim**-0.5 (BY_ONE_OVER_SQRT_HEAD_DIM).
        query_pre_attn_scalar=stack.head_dim,
        hidden_activation="gelu_pytorch_tanh",
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **ids,
        **more,
    )
    return config


def dimensions_of(name: str, config: T5GemmaConfig) -> Dimensions:
    """Return the dimensions of a config of transformers.

    Raises `ConfigError` if the config of the checkpoint `name` differs from the Flax model in another value.
    """
    parts: tuple[Any, ...] = (config.encoder, config.decoder)
    encoder, decoder = (
        Stack(
            layers=part.num_hidden_layers,
            width=part.hidden_size,
            hidden=part.intermediate_size,
            heads=part.num_attention_heads,
            head_dim=part.head_dim,
            kv_heads=part.num_key_value_heads,
        )
        for part in parts
    )
    dimensions = Dimensions(encoder, decoder, parts[1].vocab_size)
    _refuse_other_values(name, config, build_config(dimensions, "float32", [FIXED_IDS["<eos>"]]))
    if dimensions.size is None:
        return dimensions
    if dimensions.rows > dimensions.flax_rows:
        raise ConfigError(
            f"'{name}' has {dimensions.rows} rows of embeddings, and {dimensions.size} has {dimensions.flax_rows} in "
            "Flax: a checkpoint with added tokens cannot be converted"
        )
    return Dimensions(*SIZES[dimensions.size], dimensions.rows)


_MODEL_VALUES = (
    *("vocab_size", "query_pre_attn_scalar", "hidden_activation", "sliding_window", "attn_logit_softcapping"),
    *("final_logit_softcapping", "rms_norm_eps", "rope_parameters", "layer_types", "attention_bias"),
)
"""Values of a stack that the Flax model does not take from a config of transformers."""


def _refuse_other_values(name: str, config: T5GemmaConfig, expected: T5GemmaConfig) -> None:
    """Raise `ConfigError` if a value of the model differs from the expected config."""
    if not config.tie_word_embeddings:
        raise ConfigError(f"'{name}' has an output layer of its own, and in Flax it is the embedding of the decoder")
    for side in (ENCODER, DECODER):
        values, others = config.to_dict()[side], expected.to_dict()[side]
        for key in _MODEL_VALUES:
            if values[key] != others[key]:
                raise ConfigError(
                    f"config.json of '{name}' has {side}.{key}={values[key]}, and T5Gemma in Flax has {others[key]}"
                )
