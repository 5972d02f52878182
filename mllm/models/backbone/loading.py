"""Loading of config, processor and weights of a checkpoint, with quantization.

Errors that a user can cause raise `ConfigError` with one sentence.
"""

from __future__ import annotations

import copy
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoProcessor,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.models.backbone.load_errors import check_hub, explained, refuse_empty_tokenizer
from mllm.models.backbone.planned import PLANNED, planned_model
from mllm.models.backbone.streamed import STORED, Unstreamable, open_stored

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtype of full-precision weights for each value of `Hardware.precision`."""


def load_config(name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load the config of a checkpoint. It is read first, so it detects missing licenses and networks."""
    with explained(name):
        check_hub(name, "config.json")
        file = Path(name, "config.json")
        if trust_remote_code or not file.is_file():
            return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        return copy.deepcopy(_parsed_config(name, file.read_bytes()))


@lru_cache(maxsize=4)
def _parsed_config(name: str, content: bytes) -> PretrainedConfig:
    """Return the config of a folder whose config.json has this content. A model is loaded with five calls."""
    return AutoConfig.from_pretrained(name)


def load_processor(name: str, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """Load the processor of a checkpoint: tokenizer, image processor and chat template."""
    with explained(name):
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    if not isinstance(processor, ProcessorMixin):
        raise ConfigError(f"'{name}' has a tokenizer but no image processor (preprocessor_config.json is missing)")
    refuse_empty_tokenizer(name, processor.tokenizer)
    return processor


def type_advice(config: PretrainedConfig) -> str:
    """Return the advice for an architecture that a type does not load."""
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if is_encoder and not config.to_dict().get("is_decoder"):
        return "it is an encoder of text, which writes no answers; choose a model that generates text"
    tables: tuple[Any, ...] = (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )
    if any(type(config) in table for table in tables):
        return f"use type='{FAMILIES.for_architecture(config.model_type).type}'"
    return "no type loads this architecture; choose a checkpoint of another one"


def quantization(
    config: PretrainedConfig, *, load_in_4bit: bool, load_in_8bit: bool, precision: str, keep: list[str]
) -> BitsAndBytesConfig | None:
    """Return the quantization of Linear layers at loading, or None for none or an already quantized checkpoint.

    `keep` lists prefixes of modules that are not quantized. Raise `ConfigError` if the checkpoint is already quantized
    in another way.
    """
    stored = config.to_dict().get("quantization_config")
    if stored is not None:
        stored = stored if isinstance(stored, dict) else stored.to_dict()
        bits = {4: stored.get("load_in_4bit"), 8: stored.get("load_in_8bit")}
        if (load_in_4bit and not bits[4]) or (load_in_8bit and not bits[8]):
            key = "load_in_4bit" if load_in_4bit else "load_in_8bit"
            raise ConfigError(
                f"model_args.{key}=True, but the checkpoint is already quantized in another way "
                f"({stored.get('quant_method')}); remove {key}, or use the full-precision checkpoint"
            )
        logger.info("the checkpoint is already quantized (%s)", stored.get("quant_method"))
        return None
    if load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[precision],
            llm_int8_skip_modules=keep,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep) if load_in_8bit else None


def load_model(
    kind: Any,
    name: str,
    *,
    precision: str,
    device: str,
    quantization_config: BitsAndBytesConfig | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    init_seed: int | None = None,
) -> PreTrainedModel:
    """Load a model by `kind.from_pretrained`, frozen, in evaluation mode. `kind` is a model class or an Auto class.

    Weights are stored in `precision`. Quantized weights are placed on `device` ('cuda': the GPU of this process), all
    others in host memory for the trainer to move. On the device `STORED`, large weights stay in their files. On
    `PLANNED` there are no weights. With `init_seed`, the model has new random weights, and only the config is read.
    """
    options: dict[str, Any] = {"dtype": DTYPES[precision]}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if device == PLANNED:
        config = config_for(kind, name, trust_remote_code=trust_remote_code)
        return planned_model(kind, config, quantization_config=quantization_config, **options)
    if init_seed is not None:
        model = new_model(kind, name, init_seed, trust_remote_code=trust_remote_code, **options)
    elif device == STORED:
        if trust_remote_code:
            raise Unstreamable("the checkpoint contains its own code")
        with explained(name):
            model = open_stored(kind, name, load_config(name), **options)
    else:
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
            options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", 0)) if device == "cuda" else "cpu"}
        model = _read_model(kind, name, trust_remote_code=trust_remote_code, **options)
    if "model_args" in (model.config.to_dict().get("vision_config") or {}):
        # timm removes arguments from the dict that it receives, and adds functions, which no file can contain.
        original: Any = load_config(name, trust_remote_code=trust_remote_code)
        model.config.vision_config.model_args = original.vision_config.model_args
    return model


def _read_model(kind: Any, name: str, **options: Any) -> PreTrainedModel:
    """Return the model in the weight files of a checkpoint, frozen, in evaluation mode."""
    with explained(name):
        model, report = kind.from_pretrained(name, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"the weight files of '{name}' lack {len(missing)} tensors of its architecture (first {missing[0]}): the "
            "checkpoint is incomplete or of another architecture"
        )
    if "quantization_config" in options:
        _refuse_unquantized(model, options["quantization_config"])
        _release_files(model)
    # peft.prepare_model_for_kbit_training would also convert unquantized weights to fp32: 1.3 GB more for the
    # embedding of Gemma 3. Only freezing is needed here, because norms compute in fp32 in these families.
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On a CPU with AVX512-BF16, the first evaluation would reorder the weight permanently for a product without
            # gradient, so almost nothing would train after an evaluation, without an error.
            module.support_avx512bf16_for_cpu = False
    frozen: PreTrainedModel = model.eval()
    return frozen


def _release_files(model: PreTrainedModel) -> None:
    """Copy the weights of a quantized model that were read unchanged, so that its files are not in memory any more.

    On a CPU such weights are views of the mapped file. One view keeps the whole file mapped, with the pages of all
    weights that were quantized.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and not isinstance(tensor, Params4bit | Int8Params):
            tensor.data = tensor.data.clone()


def config_for(kind: Any, name: str, *, trust_remote_code: bool) -> PretrainedConfig:
    """Return the config of a checkpoint for a model of class or Auto class `kind`.

    The model may be a part of the checkpoint's, such as the vision tower of a SigLIP with its text tower.
    """
    config = load_config(name, trust_remote_code=trust_remote_code)
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    if is_model and not isinstance(config, kind.config_class):
        with explained(name):
            config = kind.config_class.from_pretrained(name)
    return config


def new_model(kind: Any, name: str, seed: int, *, trust_remote_code: bool, **options: Any) -> PreTrainedModel:
    """Return a model of class or Auto class `kind` with new random weights from the config of a checkpoint, frozen.

    The weights depend on the seed alone, not on the global random state. They are drawn on the CPU in fp32.
    """
    config, dtype = config_for(kind, name, trust_remote_code=trust_remote_code), options.pop("dtype")
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    create = kind._from_config if is_model else kind.from_config
    options = options if is_model else {**options, "trust_remote_code": trust_remote_code}
    with torch.random.fork_rng(devices=[]), explained(name):
        torch.manual_seed(seed)
        model = create(config, dtype=torch.float32, **options)
    assert isinstance(model, PreTrainedModel)
    logger.info("%s: new random weights of seed %d", name, seed)
    return model.to(dtype).requires_grad_(False).eval()


def _refuse_unquantized(model: PreTrainedModel, quantization_config: BitsAndBytesConfig) -> None:
    """Raise `ConfigError` if no layer was quantized: transformers replaces layers of the class `nn.Linear` only."""
    if not any(isinstance(module, Linear4bit | Linear8bitLt) for module in model.modules()):
        bits = 4 if quantization_config.load_in_4bit else 8
        raise ConfigError(
            f"model_args.load_in_{bits}bit=True quantizes no layer of {type(model).__name__}, because its layers "
            f"have a class of their own: remove load_in_{bits}bit"
        )
