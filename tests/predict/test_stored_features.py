"""Tests of `mllm.predict.stored_features`: runs with stored features of images are equal to runs without them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllm.config.schema import ModelArgs, RunConfig
from mllm.dataset.checking import Splits
from mllm.dataset.single_image_dataset.dummy import DummyDataset
from mllm.engine.builder import build_learner
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.image_features import POOLED, PREFIX
from mllm.models.medgemma.medgemma_perception import PROJECTOR
from mllm.pipeline.finetune import main
from mllm.predict.feature_filler import RowDraws
from mllm.predict.load import best_hardware, load_for_answers
from mllm.predict.stored_features import is_possible, store_test_features
from mllm.protocols import Bundle
from mllm.run.data import open_splits, prepare_data
from mllm.run.prepare import prepare_args
from mllm.structures import Sample, Turn

FROZEN = """
model_args.update(lora_target="language")
data_args.update(tokens_per_micro_batch=400)
training_args.update(eval_strategy="steps", eval_steps=2)
"""


def run(write_config, more: str = "") -> tuple[dict[str, torch.Tensor], list[float], str]:
    """Return adapter, losses and predictions of a run with a frozen vision tower."""
    assert main([write_config(f"{FROZEN}data_args['train']['size'] = 4\n{more}")]) == 0
    folder = Path("exp/run/latest")
    log = json.loads((folder / "training_log.json").read_text())
    losses = [row[name] for row in log["rows"] for name in ("loss", "grad_norm", "eval_loss") if name in row]
    return load_file(folder / "adapter/adapter_model.safetensors"), losses, (folder / "predictions.jsonl").read_text()


def opened(write_config, base: Path, more: str) -> tuple[RunConfig, Bundle, Splits]:
    """Return config, model and splits of a run that is not started."""
    model = f"model_args['model_name_or_path'] = '{base}'"
    config, hardware = prepare_args(write_config(f"{FROZEN}{model}\n{more}"))
    return config, load_pretrained(config.model_args, hardware), open_splits(config)


@pytest.fixture
def towers(monkeypatch) -> list[int]:
    """The number of images of each call of the vision tower."""
    calls: list[int] = []
    from transformers import Gemma3Model

    original = Gemma3Model.get_image_features

    def counted(self, pixel_values, **options):
        calls.append(len(pixel_values))
        return original(self, pixel_values, **options)

    monkeypatch.setattr(Gemma3Model, "get_image_features", counted)
    return calls


def test_updates_and_answers_are_equal_and_the_tower_runs_once_for_each_image(write_config, towers, caplog):
    adapter, losses, predictions = run(write_config, "data_args['vision_cache'] = False")
    without = sum(towers)
    caplog.set_level("INFO")
    towers.clear()
    stored = run(write_config)
    assert stored[1:] == (losses, predictions)
    assert all(torch.equal(stored[0][name], tensor) for name, tensor in adapter.items())
    compared = 2  # one image of training and one of the test, from pixels and for the features compared with them
    assert sum(towers) == 4 + 2 + 2 + 2 * compared < without
    messages = [record.getMessage() for record in caplog.records if "samples found" in record.getMessage()]
    assert ["images of train and validation in" in message for message in messages] == [True, False]
    assert ["images of test in" in message for message in messages] == [False, True]
    assert "0 samples found, 6 computed" in messages[0] and "0 samples found, 2 computed" in messages[1]
    towers.clear()
    assert run(write_config)[1:] == (losses, predictions) and towers == []
    assert "6 samples found, 0 computed" in caplog.text


def test_images_without_room_keep_their_pixels_in_pieces_of_their_own(write_config, tiny_medgemma, caplog):
    caplog.set_level("INFO")
    room = 3.5 * 16 * 128 * 4 / 1e9
    config, bundle, splits = opened(write_config, tiny_medgemma, f"data_args['vision_cache_gb'] = {room}")
    data = prepare_data(config, best_hardware(), bundle, bundle.encoder, splits)
    whole = data.collate([data.train_dataset[index] for index in range(8)]).pieces
    store_test_features(config, bundle, splits["train"], "train")
    assert "5 samples of train do not fit into data_args.vision_cache_gb" in caplog.text
    mixed = data.collate([data.train_dataset[index] for index in range(8)]).pieces
    assert {("pixel_values" in piece.student, POOLED in piece.student) for piece in mixed} == {
        (True, False),
        (False, True),
    }
    learner, counts = build_learner(config, bundle).eval(), {"next_token": torch.tensor(100.0)}
    losses = [
        float(sum(learner(piece.student, piece.targets, counts=counts)["loss"].detach() for piece in pieces))
        for pieces in (whole, mixed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("model_args['lora_target'] = 'all'", "weights that they depend on train (vision)"),
        ("model_args['trainable'] = dict(language='lora', projector='full')", "depend on train (projector)"),
        (
            "data_args['train'] = dict(_delete_=True, type='VQADataset', data_path='rows.jsonl', "
            "image_folder='pictures', transforms=[dict(type='RandomRotation', degrees=20)])",
            "images change between epochs",
        ),
        ("data_args['vision_cache'] = False", "data_args.vision_cache is False"),
    ],
)
def test_the_reason_is_logged_if_features_are_not_stored(write_config, write_rows, tiny_medgemma, caplog, more, reason):
    write_rows()
    caplog.set_level("INFO")
    config, bundle, splits = opened(write_config, tiny_medgemma, more)
    assert not is_possible(config, bundle, splits["train"])
    assert "features of the images of train are not stored, because" in caplog.text and reason in caplog.text


def test_features_of_a_random_model_are_not_zero(tiny_medgemma):
    bundle = load_for_answers(ModelArgs("medgemma", str(tiny_medgemma), lora_r=None), best_hardware())
    assert float(bundle.model.get_submodule(f"backbone.{PROJECTOR}").mm_input_projection_weight.abs().max()) > 0
    assert not any(name.startswith(PREFIX) for name in bundle.encoder.prompt(Sample([Turn("user", "Why?")])).student)


def test_rows_of_several_datasets_are_found_by_their_number():
    first, second = (DummyDataset(size=3) for _ in range(2))
    rows = [(first, 0), (second, 2), (first, 1)]
    draws = RowDraws(iter(rows))
    assert list(draws) == [(dataset, index, 0) for dataset, index in rows]
    assert draws[1:] == [(second, 2, 0), (first, 1, 0)] and draws[-1] == (first, 1, 0)
