"""Type `perceptionGPT`: heads and fusion by default, one token for an object, and gradients in every part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from mllm.config.hardware import Hardware
from mllm.errors import ConfigError
from mllm.models.builder.builder import load_pretrained
from mllm.models.shikra.options import ShikraArgs
from mllm.protocols import Bundle
from mllm.structures import Mark, Sample, Turn

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8))
MASK = np.zeros((112, 112), dtype=bool)
MASK[14:70, 28:56] = True
SAMPLE = Sample(
    [Turn("user", "<image> Where is it?"), Turn("assistant", "Answer: <box> .", ((0,),))],
    [PICTURE],
    marks=[Mark(box=(28, 14, 56, 70), mask=MASK)],
)
TEXT_ONLY = Sample([Turn("user", "Which is larger?"), Turn("assistant", "the left one")], [])


def build(folder: Path, **changes: object) -> Bundle:
    return load_pretrained(
        ShikraArgs(type="perceptionGPT", model_name_or_path=str(folder), **{"lora_r": 4, **changes}), CPU
    )


def losses(bundle: Bundle, *samples: Sample) -> tuple[Tensor, dict[str, Tensor]]:
    """Return losses of the text and of all predictions of the heads."""
    batch = bundle.encoder.pad([bundle.encoder.encode(sample) for sample in samples])
    outputs = bundle.model(**batch.student)
    logits = outputs.vocabulary(outputs.hidden_BLD[:, :-1]).float()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets["labels"][:, 1:].flatten())
    return loss + sum(prediction.square().mean() for prediction in outputs.heads.values()), outputs.heads


@pytest.mark.parametrize("composed", [False, True])
def test_every_part_has_a_gradient(tiny_shikra: Path, tiny_llama: Path, tiny_clip: Path, composed: bool) -> None:
    bundle = build(tiny_llama, vision_tower=str(tiny_clip)) if composed else build(tiny_shikra)
    trainable = {name: tensor for name, tensor in bundle.model.named_parameters() if tensor.requires_grad}
    assert {bundle.model.tower_of(name) for name in trainable} == {"language", "projector", "heads", "rows", "fusion"}
    with torch.no_grad():
        for name, tensor in trainable.items():
            if "lora_B" in name or name.startswith("heads.box.reader"):  # both begin with zeros
                tensor.normal_(std=0.02)
    loss, predictions = losses(bundle, SAMPLE, TEXT_ONLY)
    assert predictions["box"].shape == (2, 1, 4) and predictions["mask"].shape == (2, 1, 32, 32)
    loss.backward()
    assert [name for name, tensor in trainable.items() if tensor.grad is None or not tensor.grad.any()] == []


def test_the_token_of_an_object_embeds_its_box(tiny_shikra: Path) -> None:
    encoded = build(tiny_shikra).encoder.encode(SAMPLE)
    text = build(tiny_shikra).encoder.tokenizer.decode(encoded.student["input_ids"][-12:]).replace(" ", "")
    assert text.endswith("Answer:<obj_vis_s><loc><obj_vis_e>.</s>")
    torch.testing.assert_close(encoded.targets["boxes"], torch.tensor([[0.25, 0.125, 0.5, 0.625]]))
    assert encoded.targets["masks"].sum() == 32 * 32 / 8


@torch.inference_mode()
def test_without_fusion_and_heads_it_is_a_llava(tiny_shikra: Path) -> None:
    bundle = build(tiny_shikra, fuse_vision_layers=False)
    stock = LlavaForConditionalGeneration.from_pretrained(tiny_shikra)
    sample = Sample([Turn("user", "<image> What?"), Turn("assistant", "a lesion")], [PICTURE])
    batch = bundle.encoder.pad([bundle.encoder.encode(sample)])
    plain = {name: tensor for name, tensor in batch.student.items() if not name.startswith("object_")}
    outputs, known = bundle.model(**batch.student), stock.config.text_config.vocab_size
    ours = outputs.vocabulary(outputs.hidden_BLD)
    new = bundle.encoder.tokenizer.convert_tokens_to_ids(["<loc>", "<obj_vis_s>", "<obj_vis_e>"])
    old = [index for index in range(known) if index not in new]
    torch.testing.assert_close(ours[..., old], stock(**plain).logits[..., old], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_initially_the_projector_reads_the_mean_of_all_layers_but_the_last(tiny_shikra: Path) -> None:
    bundle = build(tiny_shikra)
    model = bundle.model.pretrained.model
    read: list[Tensor] = []
    model.multi_modal_projector.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    batch = bundle.encoder.pad([bundle.encoder.encode(SAMPLE)])
    bundle.model(**batch.student)
    stock = LlavaForConditionalGeneration.from_pretrained(tiny_shikra).model.vision_tower
    states = stock(batch.student["pixel_values"], output_hidden_states=True).hidden_states
    torch.testing.assert_close(read[0], torch.stack(states[:-1]).mean(dim=0)[:, 1:])


def test_a_text_box_format_with_heads_is_refused(tiny_shikra: Path) -> None:
    with pytest.raises(ConfigError, match="normalized_text writes boxes as text, but heads read a token"):
        build(tiny_shikra, box_format={"type": "normalized_text"})
    alone = build(tiny_shikra, heads={"box": {"type": "BoxHead", "hidden": 64}})
    assert set(losses(alone, SAMPLE)[1]) == {"box"}
