"""Engines that divide weights and gradients among two processes: updates, losses, answers, exports and resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_fixtures import CONFIG
from echo_files import write_echonet
from engines import ENGINES, Engine
from processes import CHECKOUT, finetune, finetune_in_processes
from safetensors.torch import load_file

SHARDED = [engine for engine in ENGINES if engine.name != "ddp"]
HEADS = """
model_args.update(lora_dropout=0.0, trainable=dict(language="lora", vision="full", projector="full"),
                  heads=dict(box=dict(type="BoxHead", hidden=32), mask=dict(type="MaskHead", dim=32)))
model_args.pop("lora_target")
objectives = dict(next_token=dict(type="NextToken"), box=dict(type="BoxLoss"), mask=dict(type="MaskLoss"))
data_args = dict(train=dict(_delete_=True, type="PhantomBoxDataset", size=9, image_size=112),
                 validation=dict(_delete_=True, type="PhantomBoxDataset", size=3, image_size=112),
                 tokens_per_micro_batch=150)
training_args.update(max_steps=3, optim="sgd", learning_rate=0.05, eval_strategy="steps", eval_steps=3, save_steps=2,
                     gradient_checkpointing=True, per_device_eval_batch_size=1)
"""


def _start(config: str, name: str, engine: Engine | None = None, *arguments: str) -> None:
    """Train a config in the folder `name`: on one process, or on two with an engine. Updates have four samples."""
    size = f"training_args.per_device_train_batch_size={4 if engine is None else 2}"
    options = ["--cfg-options", f"training_args.output_dir={name}", size]
    if engine is None:
        ended = finetune(config, *arguments, *options)
    else:
        runtime = Path(config).read_text().replace("runtime/finetune.py", f"runtime/{engine.name}.py")
        path = Path(f"{engine.name}.py")
        path.write_text(runtime)
        ended = finetune_in_processes(2, str(path), *arguments, *options, *engine.overrides, prepare=engine.prepare)
    assert ended.returncode == 0, ended.stderr[-3000:]
    if engine is not None and not arguments:
        assert f"2 processes train ({engine.name}): an update has 4 samples, 2 of each process" in ended.stderr


def _rows(run: Path, key: str) -> list[float]:
    return [row[key] for row in json.loads((run / "training_log.json").read_text())["rows"] if key in row]


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    """Return all exported tensors of a run."""
    return {
        f"{path.name} {name}": tensor
        for path in (run / "adapter").glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def _assert_equal(run: Path, expected: Path, keys: tuple[str, ...]) -> None:
    """Compare losses and exported tensors of two runs."""
    for key in keys:
        assert _rows(run, key) == pytest.approx(_rows(expected, key), rel=1e-6), key
        assert len(_rows(run, key))
    actual, tensors = _tensors(run), _tensors(expected)
    assert actual.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config `run.py` and its run `one` on one process."""
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("run.py").write_text(CONFIG.format(checkout=CHECKOUT, more=HEADS))
        _start("run.py", "one")
    return folder


@pytest.mark.parametrize("engine", SHARDED, ids=lambda engine: engine.name)
def test_heads_and_towers_train_as_on_one_process_and_continue_bit_for_bit(one_process, monkeypatch, engine):
    """Processes have different numbers of micro-batches, and the last update of an epoch has one sample."""
    pytest.importorskip(engine.package, reason="deepspeed is not installed")
    monkeypatch.chdir(one_process)
    run = Path(engine.name)
    _start("run.py", engine.name, engine)
    _assert_equal(run, Path("one"), ("loss", "box", "mask", "grad_norm", "eval_loss"))
    names = {name.split()[1].split(".")[0] for name in _tensors(run)}
    assert names >= {"base_model", "vision", "projector", "heads", "rows"}
    assert (run / "predictions.jsonl").read_text() == Path("one/predictions.jsonl").read_text()
    facts = json.loads((run / "adapter" / "facts.json").read_text())
    assert (facts["processes"], facts["engine"]) == (2, engine.name)
    assert f"| processes | 2 ({engine.name}) |" in (run / "adapter" / "README.md").read_text()

    losses, whole = _rows(run, "loss"), _tensors(run)
    shutil.rmtree(run / "checkpoint-3")
    shutil.rmtree(run / "adapter")
    _start("run.py", engine.name, engine, "--resume")
    assert _rows(run, "loss") == losses
    again = _tensors(run)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


DISTILLED = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_student.py", "{checkout}/config/_base_/datasets/echonet.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="{student}", trainable="full", lora_target="vision",
                  heads=dict(measures=dict(dropout=0.0)))
distill_args = dict(_delete_=True, teacher=dict(type="medsiglip", model_name_or_path="{teacher}"))
objectives = dict(feature_match=dict(teacher_layers=[1, 2, 3], grid=2))
data_args = dict(train=dict(data_path="echo", size=6), validation=None, test=None)
training_args = dict(max_steps=2, optim="sgd", learning_rate=1e-5, lr_scheduler_type="constant", warmup_steps=0,
                     max_grad_norm=0.0, eval_strategy="no", save_strategy="no", report_to=[], dataloader_num_workers=0)
"""


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, tiny_student: Path, tiny_medsiglip: Path) -> Path:
    """A folder with the config `run.py` of a student with a teacher and its run `one` on one process."""
    folder = tmp_path_factory.mktemp("distilled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_echonet(Path("echo"), {"TRAIN": 6}, frames=30)
        Path("run.py").write_text(DISTILLED.format(checkout=CHECKOUT, student=tiny_student, teacher=tiny_medsiglip))
        _start("run.py", "one")
    return folder


@pytest.mark.parametrize("engine", [SHARDED[0], SHARDED[2]], ids=lambda engine: engine.name)
def test_a_student_learns_from_a_teacher_whose_weights_are_divided_too(distilled, monkeypatch, engine):
    pytest.importorskip(engine.package, reason="deepspeed is not installed")
    monkeypatch.chdir(distilled)
    _start("run.py", engine.name, engine)
    _assert_equal(Path(engine.name), Path("one"), ("loss", "measures", "feature_match"))
