"""Size and number of tokens of an image of Gemma 3, against transformers and means computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, Gemma3Config, Gemma3ForConditionalGeneration

from mllm.errors import ConfigError
from mllm.models.medgemma.medgemma_perception import (
    POOL_KEY,
    is_native_image_setup,
    load_gemma3,
    pool_kernel,
    resample_positions,
    resize_images,
    set_image_tokens,
)
from mllm.models.medgemma.rules import IMAGE_TOKENS


def load(folder: Path) -> Gemma3ForConditionalGeneration:
    return load_gemma3(str(folder), precision="fp32", device="cpu")


def inputs(processor: AutoProcessor, image_count: int = 1) -> dict[str, Tensor]:
    noise = np.random.default_rng(0).integers(0, 255, (image_count, 60, 80, 3), dtype=np.uint8)
    text = "<bos>" + "<start_of_image>" * image_count + "What is it?"
    pictures = [Image.fromarray(pixels) for pixels in noise]
    return processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=False)


def features(model: Gemma3ForConditionalGeneration, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.get_image_features(pixels).pooler_output


@pytest.mark.parametrize("size", [896, 448])
@pytest.mark.parametrize("tokens", IMAGE_TOKENS)
def test_every_setup_runs_and_trains(tiny_medgemma: Path, size: int, tokens: int) -> None:
    model, processor = load(tiny_medgemma), AutoProcessor.from_pretrained(tiny_medgemma)
    resize_images(model, processor, size)
    set_image_tokens(model, processor, tokens)
    batch = inputs(processor)
    assert batch["pixel_values"].shape[-2:] == (size, size)
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == tokens
    weight = model.model.vision_tower.encoder.layers[0].self_attn.q_proj.weight.requires_grad_()
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert loss.isfinite() and weight.grad.abs().sum() > 0
    assert is_native_image_setup(model) == (tokens in (256, 64, 16))


@pytest.mark.parametrize("tokens", [256, 64, 16])
def test_square_pools_are_those_of_transformers(tiny_medgemma: Path, tokens: int) -> None:
    config = Gemma3Config.from_pretrained(tiny_medgemma)
    config.mm_tokens_per_image = tokens
    stock = Gemma3ForConditionalGeneration.from_pretrained(tiny_medgemma, config=config)
    ours, processor = load(tiny_medgemma), AutoProcessor.from_pretrained(tiny_medgemma)
    set_image_tokens(ours, processor, tokens)
    pixels = inputs(processor)["pixel_values"]
    assert torch.equal(features(stock, pixels), features(ours, pixels))


@pytest.mark.parametrize(("size", "tokens", "rows", "columns"), [(896, 128, 16, 8), (896, 32, 8, 4), (448, 128, 16, 8)])
def test_rectangular_pools_average_their_patches(
    tiny_medgemma: Path, size: int, tokens: int, rows: int, columns: int
) -> None:
    model, processor = load(tiny_medgemma), AutoProcessor.from_pretrained(tiny_medgemma)
    resize_images(model, processor, size, tokens)
    pixels = inputs(processor)["pixel_values"]
    side = size // 14
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        patches = model.model.vision_tower(pixels).last_hidden_state
        blocks = patches.reshape(1, rows, side // rows, columns, side // columns, -1)
        means = blocks.mean(dim=(2, 4)).reshape(1, tokens, -1)
        expected = projector.mm_soft_emb_norm(means) @ projector.mm_input_projection_weight
    torch.testing.assert_close(features(model, pixels), expected, rtol=1e-4, atol=1e-5)


def test_two_images_of_one_sample_differ(tiny_medgemma: Path) -> None:
    model, processor = load(tiny_medgemma), AutoProcessor.from_pretrained(tiny_medgemma)
    resize_images(model, processor, 448, 32)
    batch = inputs(processor, image_count=2)
    batch["pixel_values"][1] = -1.0
    first, second = features(model, batch["pixel_values"])
    assert (first - second).abs().mean() > 0.1 * first.abs().mean()
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


def test_positions_of_the_same_size_are_unchanged(tiny_medgemma: Path) -> None:
    model, processor = load(tiny_medgemma), AutoProcessor.from_pretrained(tiny_medgemma)
    before = model.model.vision_tower.embeddings.position_embedding.weight.clone()
    resize_images(model, processor, 896)
    after = model.model.vision_tower.embeddings.position_embedding.weight
    assert torch.equal(before, after)


def test_resampled_positions_keep_their_location() -> None:
    # If the embeddings are coordinates, resampling returns coordinates, measured from the corners of pixels.
    def coordinates(side: int) -> Tensor:
        centers = (torch.arange(side) + 0.5) / side
        return torch.stack(torch.meshgrid(centers, centers, indexing="ij"), dim=-1).reshape(-1, 2)

    resampled = resample_positions(coordinates(64), 32)
    inner = torch.zeros(32, 32, dtype=torch.bool)
    inner[3:-3, 3:-3] = True  # at the border the kernel has no neighbors on one side
    torch.testing.assert_close(resampled[inner.flatten()], coordinates(32)[inner.flatten()], rtol=0, atol=1e-4)
    assert resample_positions(coordinates(64).bfloat16(), 32).dtype is torch.bfloat16


def test_a_saved_rectangular_pool_is_read_by_us_and_refused_by_transformers(
    tiny_medgemma: Path, tmp_path: Path
) -> None:
    model, processor = load(tiny_medgemma), AutoProcessor.from_pretrained(tiny_medgemma)
    resize_images(model, processor, 448, 128)
    expected = features(model, inputs(processor)["pixel_values"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config[POOL_KEY] == [2, 4] and config["mm_tokens_per_image"] == 128
    assert config["vision_config"]["image_size"] == 448

    saved = AutoProcessor.from_pretrained(tmp_path)
    batch = inputs(saved)
    assert saved.full_image_sequence == processor.full_image_sequence
    assert torch.equal(batch["input_ids"], inputs(processor)["input_ids"])
    ours = load(tmp_path)
    assert torch.equal(features(ours, batch["pixel_values"]), expected)
    assert not is_native_image_setup(ours)
    with torch.no_grad():
        assert ours(**batch).logits.isfinite().all()

    stock = Gemma3ForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        stock(**batch)


def test_a_saved_square_pool_is_read_by_transformers(tiny_medgemma: Path, tmp_path: Path) -> None:
    model, processor = load(tiny_medgemma), AutoProcessor.from_pretrained(tiny_medgemma)
    resize_images(model, processor, 448, 32)
    set_image_tokens(model, processor, 64)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert POOL_KEY not in json.loads((tmp_path / "config.json").read_text())
    batch = inputs(AutoProcessor.from_pretrained(tmp_path))
    with torch.no_grad():
        stock = Gemma3ForConditionalGeneration.from_pretrained(tmp_path)(**batch).logits
        assert torch.equal(stock, model(**batch).logits)


def test_impossible_settings_are_refused(tiny_medgemma: Path) -> None:
    model, processor = load(tiny_medgemma), AutoProcessor.from_pretrained(tiny_medgemma)
    with pytest.raises(ConfigError, match="image_token_len=100 .* 256, 128, 64, 32, 16"):
        set_image_tokens(model, processor, 100)
    with pytest.raises(ConfigError, match="image_size=450 is not a multiple of the patch size 14"):
        resize_images(model, processor, 450)
    with pytest.raises(ConfigError, match="does not divide the 33 x 33 patches"):
        resize_images(model, processor, 462)
    assert model.config.vision_config.image_size == 896 and processor.image_seq_length == 256
    assert pool_kernel(64, 128) == (4, 8)
    assert pool_kernel(64, 32) == (8, 16)
