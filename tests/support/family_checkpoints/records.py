"""Table of the families with a tiny checkpoint: how it is built, and the sentence that refuses it, if one does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from family_checkpoints import (
    image_text,
    latest_image_text,
    more_image_text,
    more_text,
    newer_image_text,
    refused_image_text,
    text,
)
from mllm.models.auto.tiny_paligemma import paligemma, paligemma2
from mllm.tiny.checkpoints import write_tiny


@dataclass(frozen=True)
class Case:
    """One family: the type that loads it and its checkpoint."""

    name: str
    """The architecture, and a variant where there are two."""
    type: str
    make: Callable[[], tuple[Any, Any]] | str
    """Function that returns model and processor, or the name of a shipped tiny checkpoint."""
    refused: str = ""
    """Regular expression of the sentence that refuses the family; empty: it trains."""
    always: bool = True
    """False: only with `--all-families`."""
    package: str = ""
    """Package that its processor needs; the test is skipped without it."""

    def write(self, folder: Path) -> Path:
        """Write the checkpoint and return its folder."""
        if isinstance(self.make, str):
            return write_tiny(self.make, folder, vision={"image_size": 224} if self.name == "gemma3" else None)
        model, processor = self.make()
        model.save_pretrained(folder)
        if isinstance(model, PreTrainedModel):
            model.generation_config.eos_token_id = model.config.get_text_config(decoder=True).eos_token_id
            model.generation_config.save_pretrained(folder)
        else:  # a config alone, which is refused before weights are read
            save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
        processor.save_pretrained(folder)
        return folder


RARE = frozenset(
    {
        *("granite", "smollm3", "olmo2", "gemma3_text", "mistral", "mbart", "mt5", "led"),
        *("paligemma", "vipllava", "aya_vision", "gemma4_unified", "idefics2"),
    }
)
"""Architectures that differ little from another one in the table."""


def cases(kind: str, makers: dict[str, Callable[[], tuple[Any, Any]] | str]) -> list[Case]:
    """Return a case for each architecture of one type."""
    return [Case(name, kind, make, always=name not in RARE) for name, make in makers.items()]


SMALL = {"image_size": 56}
IMAGE_TEXT = cases(
    "image-text",
    {
        "llava": "llava",
        "qwen2_vl": "qwen2_vl",
        "qwen3_vl": "qwen3_vl",
        "gemma4": "gemma4",
        "qwen2_5_vl": image_text.qwen2_5_vl,
        "qwen3_5": image_text.qwen3_5,
        "internvl": "internvl",
        "paligemma": partial(paligemma, 0, {}, SMALL),
        "paligemma (gemma2)": partial(paligemma2, 0, {}, SMALL),
        "mllama": image_text.mllama,
        "idefics3": image_text.idefics3,
        "mistral3": partial(image_text.pixtral, "mistral3", 2, spatial_merge_size=2),
        "llava (pixtral)": partial(
            image_text.pixtral, "llava", 1, vision_feature_layer=-1, vision_feature_select_strategy="full"
        ),
        "lfm2_vl": image_text.lfm2_vl,
        "glm4v": image_text.glm4v,
        "llava_next": image_text.llava_next,
        "llava_onevision": image_text.llava_onevision,
        "vipllava": image_text.vipllava,
        "aya_vision": image_text.aya_vision,
        "gemma4_unified": image_text.gemma4_unified,
        "idefics2": image_text.idefics2,
    },
)
MORE_IMAGE_TEXT = [
    *(Case(name, "image-text", make, always=False) for name, make in more_image_text.MAKERS.items()),
    *(Case(name, "image-text", make, always=False) for name, make in newer_image_text.MAKERS.items()),
    *(Case(name, "image-text", make, always=False) for name, make in latest_image_text.MAKERS.items()),
    *(
        Case(name, "image-text", make, sentence, always=False)
        for name, (make, sentence) in refused_image_text.REFUSED.items()
    ),
    *(
        Case(name, "image-text", partial(text.config_alone, name), sentence, always=False)
        for name, sentence in refused_image_text.BY_CONFIG.items()
    ),
]
GEMMA3 = [
    Case("gemma3", "medgemma", "medgemma"),
    Case("gemma3n", "gemma3n-student", "gemma3n-student", always=False),
]
REFUSED = {
    **dict.fromkeys(("bert", *more_text.TWO_WAYS), "attends to later tokens"),
    "xmod": "fails on the first batch",
    "fsmt": "has no output layer of its own",
    "prophetnet": "changes its logits in a way that this version does not support",
    "reformer": "trainable tensors receive no gradient",
}
OFTEN = ("cohere", "glm4_moe", "blenderbot", "deepseek_v4", "recurrent_gemma", "zamba", "marian")
"""Those of `more_text` in every test run: scaled logits, experts beside dense layers, positions of padding, compressed
keys, another key of the cap of logits, layers that share weights, and computed weights."""
USUAL = {*OFTEN, *(name for name in text.DECODERS if name not in RARE)}
BOTH = {*text.ENCODER_DECODERS, *more_text.MORE_ENCODER_DECODERS}
"""Architectures of AutoModelForSeq2SeqLM, whose decoders AutoModelForCausalLM also loads."""
DECODERS = [
    Case(
        f"{name} (decoder)" if name in BOTH else name,
        "causal-lm",
        partial(text.decoder, name),
        REFUSED.get(name, ""),
        name in USUAL,
    )
    for name in (*text.DECODERS, *more_text.MORE_DECODERS)
]
OF_SOUND = "which reads or writes sound"


def _config_alone(name: str, kind: str, sentence: str, **values: Any) -> Case:
    """Return the case of an architecture that is refused by its config."""
    architecture = name.partition(" ")[0]
    return Case(name, kind, partial(text.config_alone, architecture, **values), sentence, always=False)


DECODERS += [_config_alone(name, "causal-lm", OF_SOUND) for name in more_text.SOUND_DECODERS]
DECODERS += [
    _config_alone(name, "causal-lm", "drafts tokens for another model", text_config=text_config)
    for name, text_config in more_text.DRAFTERS.items()
]
DECODERS += [Case("blt", "causal-lm", text.blt, "fails on the first batch", always=False)]
ENCODER_DECODERS = [
    *(
        Case(name, "seq2seq", partial(text.encoder_decoder, name), REFUSED.get(name, ""), always=name not in RARE)
        for name in text.ENCODER_DECODERS
    ),
    *(
        Case(name, "seq2seq", partial(text.encoder_decoder, name), REFUSED.get(name, ""), always=name in OFTEN)
        for name in more_text.MORE_ENCODER_DECODERS
    ),
    *(_config_alone(name, "seq2seq", OF_SOUND) for name in more_text.SOUND),
    Case("t5gemma", "seq2seq", "t5gemma"),
    Case("t5gemma2", "seq2seq", "t5gemma2"),
]
SMOLVLM = Case("smolvlm", "image-text", image_text.smolvlm, always=False, package="num2words")
NO_TEXT_MODEL = "which the Auto classes do not load"
LANGUAGE_MODELS = [
    Case(f"{case.name} (text)", "causal-lm", case.make, NO_TEXT_MODEL * (case.name in ("emu3", "mllama")), always=False)
    for case in (*GEMMA3, *IMAGE_TEXT, *MORE_IMAGE_TEXT)
    if case.name
    in (
        *(
            "gemma3",
            "gemma3n",
            "gemma4",
            "gemma4_unified",
            "qwen3_5",
            "qwen3_5_moe",
            "llama4",
            "got_ocr2",
            "fuyu",
            "git",
        ),
        *("dots3_note", "qwen4_exp", "emu3", "mllama"),
    )
]
"""Checkpoints that read images, whose language models AutoModelForCausalLM loads, or which it also loads itself."""
CASES = [*GEMMA3, *IMAGE_TEXT, SMOLVLM, *MORE_IMAGE_TEXT, *DECODERS, *LANGUAGE_MODELS, *ENCODER_DECODERS]
