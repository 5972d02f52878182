"""Models without weights for planning: parameters and packed weights have their sizes, and no numbers.

They are created under `mllm.planning.fake.FakeExecution`, which makes floating-point tensors fake.
"""

from __future__ import annotations

import math
from typing import Any, Final

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

PLANNED: Final = "planned"
"""`device` of a model whose training is planned."""
BLOCK, OUTER_BLOCK = 64, 256
"""Elements that share a scale in 4-bit weights, and scales that share one with double quantization."""


def planned_model(
    kind: Any,
    config: PretrainedConfig,
    dtype: torch.dtype,
    quantization_config: BitsAndBytesConfig | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Return the model of `kind.from_pretrained` without weights, frozen, in evaluation mode.

    `quantization_config` replaces Linear layers as in loading; their storages have the sizes of the packed numbers.
    """
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    create = kind._from_config if is_model else kind.from_config
    with no_init_weights():
        model = create(config, dtype=dtype, **options)
    assert isinstance(model, PreTrainedModel)
    model.tie_weights()
    if quantization_config is not None:
        keep = quantization_config.llm_int8_skip_modules
        replace_with_bnb_linear(model, modules_to_not_convert=keep, quantization_config=quantization_config)
        vars(model)["is_loaded_in_4bit"] = quantization_config.load_in_4bit
        vars(model)["is_loaded_in_8bit"] = quantization_config.load_in_8bit
        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                module.weight = _packed_4bit(module, dtype)
            elif isinstance(module, bnb.nn.Linear8bitLt):
                module.weight = _packed_8bit(module)
            else:
                continue
            if module.bias is not None:
                module.bias = nn.Parameter(torch.empty(module.bias.shape, dtype=dtype))
    return model.requires_grad_(False).eval()


def _packed_4bit(module: bnb.nn.Linear4bit, dtype: torch.dtype) -> nn.Parameter:
    """Return the weight of a 4-bit layer: two numbers a byte, a scale of one byte for 64, and one of fp32 for 256."""
    original: Any = module.weight
    elements = module.in_features * module.out_features
    blocks = math.ceil(elements / BLOCK)
    scales = torch.empty(math.ceil(blocks / OUTER_BLOCK))
    outer = QuantState(absmax=scales, code=torch.empty(256), blocksize=OUTER_BLOCK, dtype=torch.float32)
    weight: Any = nn.Parameter(_bytes(math.ceil(elements / 2), torch.uint8)[:, None], requires_grad=False)
    weight.quant_state = QuantState(
        absmax=_bytes(blocks, torch.uint8),
        shape=torch.Size((module.out_features, module.in_features)),
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type=original.quant_type,
        dtype=dtype,
        offset=torch.empty(()),
        state2=outer,
    )
    weight.quant_type, weight.compress_statistics = original.quant_type, original.compress_statistics
    weight.quant_storage, weight.bnb_quantized = original.quant_storage, True
    module.quant_state = weight.quant_state
    # As in `load_model`: the CPU would reorder the weight.
    module.support_avx512bf16_for_cpu = False
    return weight


def _packed_8bit(module: bnb.nn.Linear8bitLt) -> nn.Parameter:
    """Return the weight of an 8-bit layer: one byte a number, and a scale of fp32 for each row."""
    shape = (module.out_features, module.in_features)
    weight: Any = nn.Parameter(_bytes(math.prod(shape), torch.int8).view(shape), requires_grad=False)
    weight.CB, weight.SCB, weight.has_fp16_weights = None, torch.empty(module.out_features), False
    module.state.CB, module.state.SCB = weight.data, weight.SCB
    return weight


def _bytes(count: int, dtype: torch.dtype) -> Tensor:
    """Return a fake tensor of bytes; integers that are created directly would be real."""
    return torch.empty(count + count % 2, dtype=torch.uint8)[:count].view(dtype)
