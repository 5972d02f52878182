"""Runs that train weights in full: the updates of a plain loop, exact resumes, and exports that hold what trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from mllm.config.reading import read_config
from mllm.dataset.builder import build_dataset
from mllm.export.hub import prepare_upload
from mllm.export.saved_model import adapter_args, whole_model_args
from mllm.models.builder.builder import load_pretrained
from mllm.pipeline.finetune import main
from mllm.predict.load import best_hardware

SCRATCH = """
model_args.update(model_name_or_path="config_only", trainable="full", from_scratch=True, init_seed=5)
model_args.pop("lora_target")
training_args.update(optim="sgd", learning_rate=0.1, max_steps=2, per_device_train_batch_size=8, save_steps=2,
                     lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=0.0)
data_args["test"] = None
export_args = dict(merged=True)
"""
MIXED = """
model_args.update(trainable=dict(language="lora", vision=dict(last_layers=1), projector="full"))
model_args.pop("lora_target")
training_args.update(max_steps=2)
data_args["test"] = None
export_args = dict(merged=True)
"""
POSITIONS = "model.vision_tower.embeddings.position_embedding.weight"


def updates_of_a_plain_loop(config: str) -> tuple[torch.nn.Module, list[float]]:
    """Return a model of stock transformers after two updates on all eight samples, and the losses."""
    checked = read_config(config)
    bundle = load_pretrained(checked.model_args, best_hardware())
    samples = build_dataset(checked.data_args.train, seed=0, where="data_args.train")
    torch.manual_seed(5)
    new = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained("config_only"), dtype=torch.float32)
    stock = AutoModelForImageTextToText.from_config(bundle.model.pretrained.config)  # for smaller images
    positions = bundle.model.pretrained.get_parameter(POSITIONS).detach().clone()
    stock.load_state_dict(new.state_dict() | {POSITIONS: positions})
    optimizer, losses = torch.optim.SGD(stock.parameters(), lr=0.1), []
    for epoch in range(2):  # one update each, with other questions
        batch = bundle.encoder.pad([bundle.encoder.encode(samples.sample(i, epoch)) for i in range(len(samples))])
        optimizer.zero_grad()
        loss = stock(**batch.student, labels=batch.targets["labels"]).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return stock, losses


def test_a_model_from_scratch_makes_the_updates_of_a_plain_loop(write_config, tiny_medgemma: Path) -> None:
    shutil.copytree(tiny_medgemma, "config_only", ignore=shutil.ignore_patterns("*.safetensors"))
    config = write_config(SCRATCH)
    assert main([config]) == 0
    run = Path("exp/run/latest")
    stock, losses = updates_of_a_plain_loop(config)
    log = json.loads((run / "training_log.json").read_text())
    assert [row["loss"] for row in log["rows"] if "loss" in row] == pytest.approx(losses, rel=1e-5)
    merged = AutoModelForImageTextToText.from_pretrained(run / "merged").state_dict()
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-3, atol=1e-4)
    adapted = load_pretrained(adapter_args(str(run)), best_hardware())
    assert all(torch.equal(tensor, merged[name]) for name, tensor in adapted.model.pretrained.state_dict().items())
    assert len(load_file(run / "adapter" / "heads.safetensors")) == len(list(stock.parameters()))
    whole = load_pretrained(whole_model_args(str(run / "merged")), best_hardware()).model
    assert torch.equal(whole.pretrained.get_output_embeddings().weight, merged["lm_head.weight"])
    assert not whole.trained_state(), "nothing of a whole model is left to load or to train"
    for folder, trained in (
        ("adapter", "`heads.safetensors` contains all weights."),
        ("merged", "Trained: all weights."),
    ):
        card = (run / folder / "README.md").read_text()
        assert "Trained from scratch: new random weights (seed 5) in the architecture of `config_only`" in card
        assert trained in card and "lora_r" not in card
    assert "# Trained weights for config_only" in (run / "adapter" / "README.md").read_text()
    files = prepare_upload(run / "merged", base="google/medgemma-4b-it").files
    assert {"model.safetensors", "config.json", "mllm.json"} <= files.keys()


def test_a_resumed_run_of_full_weights_beside_a_lora_equals_an_uninterrupted_one(write_config) -> None:
    config = write_config(MIXED)
    assert main([config]) == 0
    run = Path("exp/run/latest").resolve()
    files = ["adapter/heads.safetensors", "adapter/adapter_model.safetensors", "merged/model.safetensors"]
    first = {file: load_file(run / file) for file in files}
    checkpoint = load_file(run / "checkpoint-1" / "model.safetensors")
    assert all("lora_" in name or "vision_tower.encoder.layers." in name or "projector" in name for name in checkpoint)
    assert len(checkpoint) == len(first[files[0]]) + len(first[files[1]])
    key = "multi_modal_projector.mm_input_projection_weight"
    folded = next(tensor for name, tensor in first[files[2]].items() if name.endswith(key))
    assert torch.equal(folded, first[files[0]]["projector.mm_input_projection_weight"])
    for folder in ("checkpoint-2", "adapter", "merged"):
        shutil.rmtree(run / folder)
    assert main([config, "--resume"]) == 0
    for file in files:
        again = load_file(run / file)
        assert again.keys() == first[file].keys()
        assert all(torch.equal(tensor, first[file][name]) for name, tensor in again.items())
    card = (run / "adapter" / "README.md").read_text()
    assert "contains the last 1 layers of the vision tower and the projector between vision and language." in card
