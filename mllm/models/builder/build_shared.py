"""The last steps of every builder: adapter, precision, encoder."""

from __future__ import annotations

from transformers import PreTrainedModel, ProcessorMixin

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.adapters import attach_adapter
from mllm.models.encoder import ChatEncoder
from mllm.models.half_safe import keep_residual_in_fp32
from mllm.models.perception import PerceptionModel
from mllm.structures import Bundle


def assemble(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    towers: dict[str, str],
    targets: dict[str, str],
    args: ModelArgs,
    hardware: Hardware,
) -> Bundle:
    """Attach the adapter, keep half precision safe, and put model and encoder together.

    `towers` names the model's parts by the prefix of their modules; `targets` holds, by the name of a tower, a regular
    expression over the full names of the modules that LoRA changes there.
    """
    adapted = attach_adapter(
        model,
        adapter_path=args.adapter_path,
        lora_r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        targets=targets,
        lora_target=args.lora_target,
        use_rslora=args.use_rslora,
        use_dora=args.use_dora,
        merge_lora=args.merge_lora,
    )
    if hardware.precision == "fp16":
        keep_residual_in_fp32(adapted)
    encoder = ChatEncoder(processor, max_length=args.max_length, turn_end=args.turn_end, system=args.system)
    return Bundle(PerceptionModel(adapted, towers), encoder)
