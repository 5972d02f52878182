"""An extracted slice has the outputs of the full model in which the same layers and neurons are left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    Gemma3nForConditionalGeneration,
    GenerationConfig,
)

from mllm.errors import ConfigError
from mllm.models.gemma3n.extract import extract, open_checkpoint
from mllm.models.gemma3n.matformer import PRESETS, Slice, custom_slice, preset_slice
from mllm.tiny.checkpoints import write_tiny

IDS = torch.randint(10, 300, (2, 12), generator=torch.Generator().manual_seed(3))


class Skipped(nn.Module):
    """Identity in place of a layer."""

    def forward(self, hidden_states: Tensor, *inputs: Any, **more: Any) -> Tensor:
        return hidden_states


def left_out(model: nn.Module, choice: Slice) -> nn.Module:
    """Return the full model with its config and caches, without the neurons and layers that `choice` leaves out."""
    layers = model.get_submodule("model.language_model" if hasattr(model.model, "language_model") else "model").layers
    for place, layer in enumerate(choice.layers):
        mlp, width = layers[layer].mlp, choice.widths[place]
        mlp.gate_proj.weight = nn.Parameter(mlp.gate_proj.weight[:width])
        mlp.up_proj.weight = nn.Parameter(mlp.up_proj.weight[:width])
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, :width])
    for layer in range(len(layers)):
        if layer not in choice.layers:
            layers[layer] = Skipped()
    return model


def loaded(folder: Path, kind: Any = AutoModelForCausalLM, dtype: torch.dtype = torch.float64) -> Any:
    model, report = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model


def extracted(source: Path, folder: Path, choice: Slice) -> Path:
    folder.mkdir()
    extract(*open_checkpoint(str(source)), folder, choice)
    return folder


@torch.inference_mode()
def compare(small: nn.Module, whole: nn.Module, choice: Slice) -> None:
    """Compare logits, and greedy answers with a cache; prompts are longer than the sliding window."""
    full = whole(IDS).logits
    expected = left_out(whole, choice)(IDS).logits
    torch.testing.assert_close(small(IDS).logits, expected, rtol=0, atol=1e-9)
    if len(choice.layers) < 35 or min(choice.widths) < 64:
        assert (full - expected).abs().max() > 0.1, "what is left out is not missed: the test would see nothing"
    greedy = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    answers = small.generate(IDS, generation_config=greedy)
    assert answers.tolist() == whole.generate(IDS, generation_config=greedy).tolist()
    without_cache = small(answers[:, :-1], use_cache=False).logits[:, IDS.shape[1] - 1 :].argmax(-1)
    assert answers[:, IDS.shape[1] :].tolist() == without_cache.tolist()
    assert len(set(answers[:, IDS.shape[1] :].flatten().tolist())) > 3, "one word over and over shows little"


@pytest.mark.parametrize("name", ["E2B", "E2.69B"])
def test_presets(deep, tmp_path, name):
    _, config = open_checkpoint(str(deep))
    choice = preset_slice(name, config)
    assert set(choice.widths) == ({32} if name == "E2B" else {32, 64})
    compare(loaded(extracted(deep, tmp_path / "small", choice)), loaded(deep), choice)


@pytest.mark.parametrize(
    ("dropped", "widths"),
    [
        ([1, 7, 22, 29], [*[17] * 10, 64, *[40] * 20]),  # own and shared keys, sparse and dense layers
        (range(20, 35), [48]),  # no keys are shared
        ([19, 24, 29, 34], []),  # a layer with keys is removed with all layers that share them
    ],
)
def test_custom_slices_equal_parts_of_their_source(deep, tmp_path, dropped: Sequence[int], widths: list[int]):
    _, config = open_checkpoint(str(deep))
    choice = custom_slice(config, widths, dropped)
    compare(loaded(extracted(deep, tmp_path / "small", choice)), loaded(deep), choice)


def test_shared_layers_read_the_caches_of_the_last_layers_with_keys(deep, tmp_path):
    _, config = open_checkpoint(str(deep))
    small = loaded(extracted(deep, tmp_path / "small", preset_slice("E2B", config)))
    readers = [layer.self_attn.is_kv_shared_layer for layer in small.model.layers]
    sources = [layer.self_attn.store_full_length_kv for layer in small.model.layers]
    assert readers == [False] * 20 + [True] * 10
    assert [place for place, is_source in enumerate(sources) if is_source] == [18, 19]
    assert [small.config.layer_types[place] for place in (18, 19)] == ["sliding_attention", "full_attention"]


def test_towers_and_other_dtypes_are_kept_bit_for_bit(deep_with_towers, tmp_path):
    _, config = open_checkpoint(str(deep_with_towers))
    choice, kind = preset_slice("E2B", config), Gemma3nForConditionalGeneration
    folder = extracted(deep_with_towers, tmp_path / "small", choice)
    compare(loaded(folder, kind), loaded(deep_with_towers, kind), choice)
    small, whole = loaded(folder, kind, torch.bfloat16), loaded(deep_with_towers, kind, torch.bfloat16)
    towers = ("model.vision_tower", "model.audio_tower", "model.embed_vision", "model.embed_audio")
    written, stored = small.state_dict(), whole.state_dict()
    names = [name for name in stored if name.startswith(towers)]
    assert len(names) > 100
    assert all(torch.equal(written[name], stored[name]) for name in names)

    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
    ]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {file: load_file(file) for file in files}
    assert index["weight_map"] == {name: file.name for file in files for name in tensors[file]}
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in tensors[file].values())
    values, before = (json.loads((path / "config.json").read_text()) for path in (folder, deep_with_towers))
    del values["text_config"], before["text_config"]
    assert values == before


@torch.inference_mode()
def test_a_slice_reads_images_like_its_source(deep_with_towers, tmp_path):
    _, config = open_checkpoint(str(deep_with_towers))
    choice, kind = preset_slice("E1.96B", config), Gemma3nForConditionalGeneration
    folder = extracted(deep_with_towers, tmp_path / "small", choice)
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.fromarray(torch.randint(0, 256, (90, 90, 3), dtype=torch.uint8).numpy())
    text = f"{processor.image_token} What is this?"
    batch = processor(text=text, images=image, return_tensors="pt")
    batch["pixel_values"] = batch["pixel_values"].double()
    small, whole = loaded(folder, kind), left_out(loaded(deep_with_towers, kind), choice)
    logits = small(**batch).logits
    torch.testing.assert_close(logits, whole(**batch).logits, rtol=0, atol=1e-9)
    batch["pixel_values"] = torch.zeros_like(batch["pixel_values"])
    assert (small(**batch).logits - logits).abs().max() > 1e-3, "the image is not seen"


def renamed(source: Path, folder: Path, prefix: str, more: dict[str, Tensor]) -> Path:
    """Write a copy of a checkpoint with another prefix of its language model, and `more` tensors."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    tensors = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((source / "config.json").read_text())
    return folder


@pytest.mark.parametrize("prefix", ["", "model.language_model."])
def test_any_prefix_of_tensor_names_is_kept(deep, tmp_path, prefix):
    _, config = open_checkpoint(str(deep))
    choice = preset_slice("E2B", config)
    folder = extracted(renamed(deep, tmp_path / "source", prefix, {}), tmp_path / "small", choice)
    plain = load_file(extracted(deep, tmp_path / "plain", choice) / "model.safetensors")
    other = load_file(folder / "model.safetensors")
    assert {prefix + name.removeprefix("model."): tensor.sum() for name, tensor in plain.items()} == {
        name: tensor.sum() for name, tensor in other.items()
    }


def test_keys_that_shared_layers_do_not_need_are_kept_for_older_readers(deep, tmp_path):
    """Published checkpoints contain them; transformers 4 reads them, transformers 5 ignores them."""
    more = {
        f"model.layers.{layer}.self_attn.k_proj.weight": torch.full((32, 64), float(layer)) for layer in range(20, 35)
    }
    source = renamed(deep, tmp_path / "source", "model.", more)
    _, config = open_checkpoint(str(source))
    folder = extracted(source, tmp_path / "small", preset_slice("E2B", config))
    assert not torch.equal(loaded(folder)(IDS).logits, loaded(source)(IDS).logits)
    stored = load_file(folder / "model.safetensors")
    values = [stored[f"model.layers.{layer}.self_attn.k_proj.weight"][0, 0].item() for layer in range(20, 30)]
    assert values == list(range(25, 35))


def test_the_config_and_the_other_files_are_written(deep, tmp_path):
    _, config = open_checkpoint(str(deep))
    folder = extracted(deep, tmp_path / "small", preset_slice("E2B", config))
    values, before = (json.loads((path / "config.json").read_text()) for path in (folder, deep))
    pattern = ["sliding_attention"] * 4 + ["full_attention"]
    assert values == before | {
        "num_hidden_layers": 30,
        "intermediate_size": [32] * 30,
        "layer_types": pattern * 6,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
        "num_kv_shared_layers": 10,
    }
    text = "The heart is not enlarged."
    assert AutoTokenizer.from_pretrained(folder)(text) == AutoTokenizer.from_pretrained(deep)(text)
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(deep).chat_template
    assert GenerationConfig.from_pretrained(folder).eos_token_id == GenerationConfig.from_pretrained(deep).eos_token_id


def test_parameters_are_counted(deep, tmp_path):
    source, config = open_checkpoint(str(deep))
    (tmp_path / "small").mkdir()
    report = extract(source, config, tmp_path / "small", preset_slice("E2B", config))
    assert report.before == sum(parameter.numel() for parameter in loaded(deep).parameters())
    assert report.after == sum(parameter.numel() for parameter in loaded(tmp_path / "small").parameters())


def test_all_presets_load(deep, tmp_path):
    _, config = open_checkpoint(str(deep))
    for name in PRESETS:
        choice = preset_slice(name, config)
        small = loaded(extracted(deep, tmp_path / name, choice))
        assert [layer.mlp.gate_proj.out_features for layer in small.model.layers] == list(choice.widths)


def test_invalid_checkpoints_are_refused(deep, tiny_medgemma, tmp_path):
    _, config = open_checkpoint(str(deep))
    choice = preset_slice("E2B", config)
    with pytest.raises(ConfigError, match="is a 'gemma3' checkpoint; only Gemma 3n contains MatFormer slices"):
        open_checkpoint(str(tiny_medgemma))

    quantized = renamed(deep, tmp_path / "quantized", "model.", {})
    values = json.loads((deep / "config.json").read_text())
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps({**values, "quantization_config": quantization}))
    with pytest.raises(ConfigError, match="contains quantized weights, which cannot be sliced"):
        open_checkpoint(str(quantized))

    other = write_tiny("gemma3n", tmp_path / "other")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"lack model\.layers\..*which is required by its config\.json"):
        extract(other, config, tmp_path / "out", choice)
    wide = renamed(deep, tmp_path / "wide", "model.", {"model.layers.3.mlp.up_proj.weight": torch.ones(96, 64)})
    with pytest.raises(ConfigError, match=r"up_proj\.weight has the shape \[96, 64\], but config\.json requires 64"):
        extract(wide, config, tmp_path / "out", choice)
    assert not (tmp_path / "out" / "config.json").exists()

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps(values))
    torch.save(load_file(deep / "model.safetensors"), pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"contains no model\.safetensors: save its weights as safetensors first"):
        open_checkpoint(str(pickled))
