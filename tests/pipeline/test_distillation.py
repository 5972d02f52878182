"""Distillation runs, from echocardiograms to measures, also killed and resumed."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import pytest
import torch
from echo_files import write_camus, write_echonet
from processes import CHECKOUT, finetune
from safetensors.torch import load_file

from mllm.errors import ConfigError, DataError
from mllm.models.backbone import taps
from mllm.pipeline.finetune import main
from mllm.pipeline.predict import main as predict
from mllm.tiny.checkpoints import write_tiny

CONFIG = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_student.py", "{checkout}/config/_base_/datasets/echonet.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="{student}", lora_r=4)
distill_args = dict(_delete_=True, cache_folder="kept",
                    teacher=dict(type="medsiglip", model_name_or_path="{teacher}"))
objectives = dict(feature_match=dict(teacher_layers=[1, 2, 3], grid=2))
data_args = dict(train=dict(data_path="echo", size=6), validation=dict(data_path="echo"), test=dict(data_path="echo"))
training_args = dict(num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
                     learning_rate=1e-3, dataloader_num_workers=0, save_strategy="steps", save_steps=1,
                     save_total_limit=None)
{more}
"""


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EchoNet-Dynamic with six, two and three patients."""
    folder = tmp_path_factory.mktemp("echo") / "echo"
    write_echonet(folder, {"TRAIN": 6, "VAL": 2, "TEST": 3}, frames=30)
    return folder


@pytest.fixture
def write(folder: Path, echo: Path, tiny_student: Path, tiny_medsiglip: Path):
    """A function that writes a config of two epochs of two updates, the second of half a batch; returns its name."""
    (folder / "echo").symlink_to(echo)

    def write(more: str = "") -> str:
        text = CONFIG.format(checkout=CHECKOUT, student=tiny_student, teacher=tiny_medsiglip, more=more)
        Path("run.py").write_text(text)
        return "run.py"

    return write


def _rows(run: str = "exp/run/latest") -> list[dict[str, float]]:
    return [row for row in json.loads((Path(run) / "training_log.json").read_text())["rows"] if "loss" in row]


def _exact(rows: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [tuple(row[key] for key in ("loss", "measures", "feature_match", "grad_norm")) for row in rows]


def _trained(run: str = "exp/run/latest") -> dict[str, torch.Tensor]:
    folder = Path(run) / "adapter"
    return {**load_file(folder / "adapter_model.safetensors"), **load_file(folder / "heads.safetensors")}


def _frames(folder: str) -> str:
    """Return the two traced frames of the first patient as arguments of the command line."""
    lines = [line.split(",") for line in (Path(folder) / "VolumeTracings.csv").read_text().splitlines()[1:]]
    own = sorted({int(line[-1]) for line in lines if line[0] == lines[0][0]})
    return f"ED={own[0]},ES={own[1]}"


def test_a_run_from_videos_to_measures_plots_and_an_adapter(write, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="mllm"):
        assert main([write()]) == 0
    run = Path("exp/run/latest")
    names = {path.name for path in run.iterdir()}
    assert names >= {
        *("environment.json", "environment.md", "data_summary.json", "measures.png", "first_batch.md"),
        *("training_log.json", "training_progress.png", "loss.png", "adapter", "student", "epochs"),
        *("predictions.jsonl", "metrics.json", "agreement.png"),
    }
    assert [phase for phase in ("Reservoir", "Conduit", "Active") if f"{phase}:" not in caplog.text] == []
    assert "teacher cache in kept/" in caplog.text and "0 of 16 images found, 16 computed" in caplog.text
    log = json.loads((run / "training_log.json").read_text())
    assert len(log["train_losses"]) == len(log["val_losses"]) == 2
    assert log["parameters"] == {
        **dict(sample_size=6, lr=1e-3, epochs=2, feature_weight_start=0.05, lora_r=4, lora_alpha=16, batch_size=2),
        "gradient_accumulation_steps": 2,
    }
    folders = [run / row["checkpoint_path"] for row in log["epoch_details"]]
    assert all((folder / "heads.safetensors").is_file() for folder in folders)
    for folder, updates in zip(folders, (2, 4), strict=True):
        assert f"| updates | {updates} |" in (folder / "README.md").read_text()
    for name in ("adapter", "student"):
        assert "| measures/EF" in (run / name / "README.md").read_text()
    rows = _rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4], "the last two patients of an epoch make an update as well"
    for step, row in enumerate(rows):
        weight = 0.05 + 0.25 * step / 4
        assert row["loss"] == pytest.approx((1 - weight) * row["measures"] + weight * row["feature_match"], rel=1e-4)
    for row in log["rows"]:
        if "eval_loss" in row:  # with the final weights, so that epochs are comparable
            whole = 0.7 * row["eval_measures"] + 0.3 * row["eval_feature_match"]
            assert row["eval_loss"] == pytest.approx(whole, rel=1e-4)
    figures = json.loads((run / "metrics.json").read_text())["figures"]["measures"]
    for folder in (run, run / "adapter", run / "student"):
        assert json.loads((folder / "facts.json").read_text())["figures"]["measures"] == figures
    assert all("| measures/EF_mae |" in (run / name / "README.md").read_text() for name in ("adapter", "student"))
    assert {f"{name}_{figure}" for name in ("EF", "EDV", "ESV") for figure in ("mae", "rmse", "r2")} <= set(figures)
    capsys.readouterr()
    for options in (["--adapter", "exp/run/latest"], ["--model", "exp/run/latest/student"]):
        video = next(Path("echo/Videos").iterdir())
        assert predict([*options, "--video", str(video), "--frames", _frames("echo")]) == 0
    other = 'model_args.update(adapter_path="exp/run/latest/adapter", lora_r=None)\n'
    other += 'model_args.update(heads=dict(measures=dict(measures=["EDV", "EF", "ESV"])))'
    first, second = capsys.readouterr().out.strip().splitlines()[-2:]
    assert [word for word in first.split() if not word[0].isdigit()] == ["EF", "%,", "EDV", "mL,", "ESV", "mL"]
    assert first.replace(" ", "")[:4] == second.replace(" ", "")[:4]
    with pytest.raises(ConfigError, match=r"was trained with \['EF', 'EDV', 'ESV'\]: set them back, in that order"):
        main([write(other)])


def test_the_cache_is_used_again_and_losses_are_those_of_a_resident_teacher(write, caplog):
    main([write(), "--cfg-options", "training_args.output_dir=cached"])
    with caplog.at_level(logging.INFO, logger="mllm"):
        main([write(), "--cfg-options", "training_args.output_dir=again"])
    assert "16 of 16 images found, 0 computed" in caplog.text
    resident = ["training_args.output_dir=resident", "training_args.save_strategy=no"]
    main([write("distill_args.update(cache=False)"), "--cfg-options", *resident])
    assert Path("cached/epochs").is_dir() and not Path("resident/epochs").exists()
    assert _exact(_rows("cached")) == _exact(_rows("again")) == _exact(_rows("resident"))
    actual = _trained("resident")
    assert all(torch.equal(actual[name], tensor) for name, tensor in _trained("cached").items())


KILLER = '''
"""Kills its own process in the middle of the third update."""
import os, signal
from mllm.objectives.features import FeatureMatch
from mllm.registry import OBJECTIVES
calls = 0
@OBJECTIVES.register_module(name="FeatureMatch", force=True)
class Fragile(FeatureMatch):
    """Feature matching that dies once."""
    def total(self, context):
        global calls
        calls += self.training
        if os.environ.get("KILL") and calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().total(context)
'''


def test_a_killed_run_continues_bit_for_bit_curriculum_and_cache_included(write):
    Path("killer.py").write_text(KILLER)
    config = write('custom_imports = dict(imports=["killer"])')
    killed = finetune(config, KILL="1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    files = sorted(Path("kept").rglob("*.safetensors"))
    assert len(files) == 16
    files[0].write_bytes(files[0].read_bytes()[:50])  # as a full disk would leave it
    resumed = finetune(config, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "continuing from checkpoint-" in resumed.stderr and "15 of 16 images found, 1 computed" in resumed.stderr
    whole = finetune(config, "--cfg-options", "training_args.output_dir=whole")
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert _exact(_rows()) == _exact(_rows("whole")) and len(_rows()) == 4
    actual = _trained("whole")
    assert all(torch.equal(actual[name], tensor) for name, tensor in _trained().items())


def test_the_same_run_through_camus_folders(write):
    write_camus(Path("camus"), {"training": 4, "validation": 2, "testing": 2})
    folders = [f'{name}=dict(_delete_=True, type="CamusDataset", data_path="camus", split="{split}")'
               for name, split in (("train", "training"), ("validation", "validation"), ("test", "testing"))]  # fmt: skip  # noqa: E501
    assert main([write(f"data_args.update({', '.join(folders)})\ntraining_args.update(max_steps=2)")]) == 0
    assert {"agreement.png", "metrics.json", "adapter", "student"} <= {p.name for p in Path("exp/run/latest").iterdir()}


def test_a_row_with_an_invalid_measure_is_skipped_if_allowed(write):
    rows = []
    for number, one in enumerate(write_echonet(Path("cines"), {"TRAIN": 5}, frames=30)):
        rows.append({"file": f"Videos/{one.name}.avi", "ED": one.ed, "ES": one.es, **one.heart.measures})
        rows[-1] |= {"EDV": "about 100"} if number == 2 else {}
    Path("cines/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = 'dict(_delete_=True, type="DicomCineDataset", data_path="cines/rows.jsonl", image_folder="cines")'
    few = f"data_args.update(train={train}, validation=None, test=None)\ntraining_args.update(max_steps=2)"
    with pytest.raises(DataError, match="rows.jsonl, line 3: field 'EDV' must be a number"):
        main([write(few)])
    assert main([write(few), "--cfg-options", "data_args.on_error=skip", "training_args.output_dir=skipped"]) == 0
    assert "line 3: field 'EDV' must be a number" in Path("skipped/skipped_rows.txt").read_text()


def test_a_resume_with_another_distillation_is_refused(write, tiny_medsiglip):
    """Projectors of other layers or of another teacher with equal widths would be loaded without an error."""
    Path("other").symlink_to(tiny_medsiglip)
    one = ["training_args.max_steps=1", "data_args.test=None", "data_args.validation=None"]
    assert main([write(), "--cfg-options", *one]) == 0
    again = ["--resume", "--cfg-options", "objectives.feature_match.weight.end=0.2", "data_args.test=None"]
    for change in (
        "objectives.feature_match.student_layers=[0,1,3]",
        "distill_args.teacher.model_name_or_path=other",
    ):
        key = change.split("=")[0]
        with pytest.raises(ConfigError, match=f"--resume: {key} is .*began with .*; set it back"):
            main([write(), *again, change])
    assert main([write(), *again]) == 0


PUBLISHED = '''
"""Taps as GEMMA 3NCORE hung them up: what the hooks keep is detached."""
from mllm.models.backbone import taps
pooled = taps.pooled
taps.pooled = lambda features, grid: pooled(features.detach(), grid)
'''


def test_the_published_wiring_is_refused_by_name_before_the_first_update(write, monkeypatch):
    monkeypatch.setattr("mllm.models.backbone.taps.pooled", taps.pooled)  # so that it is restored after the test
    Path("published.py").write_text(PUBLISHED)
    with pytest.raises(ConfigError, match=r"FeatureMatch has no effect: model.vision_tower.timm_model.blocks.0 of the"):
        main([write('custom_imports = dict(imports=["published"])')])
    assert not list(Path("exp").rglob("training_log.json"))


WORDS = """
_base_ = ["{checkout}/config/_base_/models/medgemma.py", "{checkout}/config/_base_/datasets/dummy.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(_delete_=True, type="gemma3n-student", model_name_or_path="{student}", lora_r=4, lora_target="all")
distill_args = dict(teacher=dict(type="medgemma", model_name_or_path="{teacher}"))
objectives = dict(next_token=dict(weight=0.1), logit_match=dict(type="LogitMatch", weight=0.9))
data_args = dict(train=dict(size=4), validation=None, test=None)
training_args = dict(max_steps=8, per_device_train_batch_size=4, dataloader_num_workers=0, eval_strategy="no",
                     learning_rate=5e-3, lr_scheduler_type="constant", warmup_steps=0, save_strategy="no", report_to=[])
"""


def test_logits_of_medgemma_are_distilled_into_gemma_3n(folder: Path, tiny_student: Path):
    teacher = write_tiny("medgemma", folder / "teacher", vision={"image_size": 224})
    Path("run.py").write_text(WORDS.format(checkout=CHECKOUT, student=tiny_student, teacher=teacher))
    assert main(["run.py"]) == 0
    rows = _rows()
    for row in rows:
        assert row["loss"] == pytest.approx(0.1 * row["next_token"] + 0.9 * row["logit_match"], rel=1e-4)
    assert rows[-1]["logit_match"] < 0.95 * rows[0]["logit_match"]
