"""Builder of type `seq2seq`; its record is in `mllm/models/text/family.py`."""

from __future__ import annotations

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.build_family import build_model
from mllm.protocols import Bundle
from mllm.registry import MODELS


@MODELS.register_module("seq2seq")
def build_seq2seq(args: ModelArgs, hardware: Hardware) -> Bundle:
    """Any model of transformers' AutoModelForSeq2SeqLM: T5Gemma, T5, mT5..."""
    return build_model(args, hardware)
