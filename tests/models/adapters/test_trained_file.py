"""Trained tensors outside the LoRA are restored exactly from an adapter and from a merged model."""

from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.dataset.single_image_dataset.scenes import PhantomBoxDataset
from mllm.errors import ConfigError
from mllm.export.adapter import write as write_adapter
from mllm.export.facts import Facts
from mllm.export.merged import write as write_merged
from mllm.export.settings import read_settings
from mllm.models.builder.builder import load_pretrained
from mllm.run_files import TRAINED

HEADS = {"box": {"type": "BoxHead", "hidden": 32}, "mask": {"type": "MaskHead", "dim": 32}}


@pytest.fixture(scope="module")
def exported(tiny_medgemma, tmp_path_factory):
    """A model with changed trained tensors, and the folder of its adapter."""
    args = dict(type="medgemma", model_name_or_path=str(tiny_medgemma), image_size=112, image_token_len=16)
    bundle = load_pretrained(ModelArgs(**args, heads=HEADS, max_length=256), detect())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("run") / "adapter"
    settings = asdict(ModelArgs(**args, heads=HEADS, max_length=256))
    write_adapter(bundle, folder, facts=Facts(str(tiny_medgemma), settings))
    return bundle, folder, settings


def batch_of(bundle):
    sample = PhantomBoxDataset(2, image_size=112, lesions=(1, 2)).sample(0)
    return bundle.encoder.pad([bundle.encoder.encode(sample)])


@torch.no_grad()
def outputs_of(bundle):
    outputs = bundle.model.eval()(**batch_of(bundle).student)
    return [outputs.vocabulary(outputs.hidden_BLD), outputs.heads["box"], outputs.heads["mask"]]


def test_an_adapter_has_its_heads_and_rows(exported):
    bundle, folder, _ = exported
    settings = read_settings(folder)
    assert settings["heads"] == HEADS and (folder / TRAINED).is_file()
    again = load_pretrained(
        ModelArgs(
            model_name_or_path=str(bundle.model.pretrained.name_or_path),
            adapter_path=str(folder),
            lora_r=None,
            **settings,
        ),
        detect(),
    )
    for mine, theirs in zip(outputs_of(bundle), outputs_of(again), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_merged_model_has_rows_in_its_weights_and_heads_in_a_file(exported, tmp_path):
    _, folder, settings = exported
    args = dict(model_name_or_path=settings["model_name_or_path"], adapter_path=str(folder), lora_r=None)
    bundle = load_pretrained(ModelArgs(**args, **read_settings(folder)), detect())
    before = outputs_of(bundle)
    write_merged(bundle, tmp_path / "merged", facts=Facts("tiny", settings))
    assert {name.partition(".")[0] for name in load_file(tmp_path / "merged" / TRAINED)} == {"heads"}
    merged = load_pretrained(
        ModelArgs(model_name_or_path=str(tmp_path / "merged"), lora_r=4, **read_settings(tmp_path / "merged")), detect()
    )
    for mine, theirs in zip(before, outputs_of(merged), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    index = AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids("<loc>")
    row = bundle.model.rows.input[int((bundle.model.rows.ids == index).nonzero())]
    assert torch.allclose(stock.get_input_embeddings().weight[index], row)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("rows.input"), "lack rows.input"),
        (lambda state: state.update({"heads.other": torch.ones(1)}), "have heads.other, which the model does not have"),
        (lambda state: state.update({"rows.input": torch.ones(2, 2)}), r"rows.input has shape \(2, 2\)"),
        (lambda state: state.update({"rows.input": state["rows.input"] * float("nan")}), "contains NaN or infinity"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(exported, tmp_path, change, sentence):
    _, folder, settings = exported
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / TRAINED)
    change(state)
    save_file(state, tmp_path / TRAINED)
    args = dict(model_name_or_path=settings["model_name_or_path"], adapter_path=str(tmp_path), lora_r=None)
    with pytest.raises(ConfigError, match=sentence):
        load_pretrained(ModelArgs(**args, **read_settings(folder)), detect())
