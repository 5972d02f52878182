"""Runs from a config to a run folder, also killed and resumed."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from command_fixtures import CONFIG
from peft import PeftModel
from processes import CHECKOUT, finetune
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mllm.errors import ConfigError
from mllm.export.folder import update_figures
from mllm.models.encoding.sharing import SharedRow
from mllm.objectives.text import NextToken
from mllm.pipeline.finetune import main
from mllm.run_files import VISION_CACHE


def adapter(run: str = "exp/run/latest") -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


def losses(run: str = "exp/run/latest") -> list[float]:
    return [row["loss"] for row in json.loads((Path(run) / "training_log.json").read_text())["rows"] if "loss" in row]


def test_a_run_folder_has_all_records(write_config, caplog):
    more = "export_args = dict(merged=True)"
    page = Path("exp/run/data/data.html")
    page.parent.mkdir(parents=True)
    page.write_text("<p>as mllm data writes it</p>")
    with caplog.at_level("INFO", logger="mllm"):
        assert (
            main(
                [write_config(more), "--cfg-options", "training_args.eval_strategy=steps", "training_args.eval_steps=2"]
            )
            == 0
        )
    run = Path("exp/run/latest")
    assert run.is_symlink()
    assert (run.resolve().parent.name, len(run.resolve().name)) == ("run", len("20260102_030405"))
    names = {path.name for path in run.iterdir()}
    assert names >= {
        *("config.py", "environment.json", "first_batch.md", "training_log.json", "loss.png", "tensorboard"),
        *("adapter", "merged", "predictions.jsonl", "report.html", "warnings.json", "checkpoint-1", "checkpoint-4"),
    }
    log = json.loads((run / "training_log.json").read_text())
    assert [row["step"] for row in log["rows"] if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in log["rows"] if "eval_loss" in row] == [2, 4]
    assert {"packages", "git"} <= set(json.loads((run / "environment.json").read_text()))
    assert any(path.name.startswith("events") for path in (run / "tensorboard").rglob("*"))
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    keys = {"source", "patient", "modality", "question", "reference", "prediction", "tokens"}
    assert [set(row) for row in predictions] == [keys] * 2
    assert "held-out accuracy: " in caplog.text
    assert f"shown in {page}" in caplog.text
    link = re.search(r"\[data.html\]\((.*)\)", (run / "first_batch.md").read_text())
    assert (run.resolve() / link[1]).samefile(page)
    figures = json.loads((run / "metrics.json").read_text())["figures"]
    assert figures["accuracy"]
    for folder in (run, run / "adapter", run / "merged"):
        facts = json.loads((folder / "facts.json").read_text())
        assert (facts["figures"], facts["updates"]) == (figures, 4)
    for folder in (run / "adapter", run / "merged"):
        card = (folder / "README.md").read_text()
        assert "not for clinical use" in card
        assert "| updates | 4 |\n| accuracy | " in card
    base = AutoModelForImageTextToText.from_pretrained("ckpt/tiny-medgemma")
    loaded = PeftModel.from_pretrained(base, str(run / "adapter"))
    assert any(tensor.abs().max() > 0 for name, tensor in loaded.state_dict().items() if "lora_B" in name)
    facts = json.loads((run / "facts.json").read_text())
    assert facts["updates"] == 4 and "accuracy" in facts["figures"]
    for folder in ("adapter", "merged"):
        assert json.loads((run / folder / "facts.json").read_text())["figures"] == facts["figures"]
        assert "| accuracy |" in (run / folder / "README.md").read_text()
    assert json.loads((run / "merged" / "export_report.json").read_text())["max_abs_difference"] < 1e-4


def test_the_resolved_config_reproduces_the_weights(write_config):
    main([write_config()])
    first = adapter()
    main([str(Path("exp/run/latest/config.py").resolve()), "--cfg-options", "training_args.output_dir=again"])
    assert Path("again/adapter/adapter_config.json").is_file()
    assert all(torch.equal(first[name], tensor) for name, tensor in adapter("again").items())


KILLER = '''
"""Kills its own process at the moment that KILL_AT names, once."""
import os, signal
from pathlib import Path
import torch
from mllm.objectives.text import NextToken
from mllm.registry import OBJECTIVES

MOMENT, calls = os.environ.get("KILL_AT"), 0
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

@OBJECTIVES.register_module()
class Fragile(NextToken):
    """Next-token prediction that dies in the middle of the third update, or between two."""
    def total(self, context):
        global calls
        calls += context.student.hidden_BLD.requires_grad and self.training
        if MOMENT == "mid-step" and calls == 4:
            die()
        return super().total(context)
    def count(self, targets):
        if MOMENT == "between" and Path("exp/run/latest/checkpoint-3/complete.json").exists():
            die()
        return super().count(targets)

if MOMENT == "saving":
    save = torch.save
    def torn(value, path, *args, **kwargs):
        if "checkpoint-3" in str(path):
            save(value, path, *args, **kwargs)
            with open(path, "r+b") as file:
                file.truncate(100)
            die()
        return save(value, path, *args, **kwargs)
    torch.save = torn
'''


def write_fragile() -> str:
    """Write a config whose run dies at the moment that KILL_AT names, and return its name."""
    Path("killer.py").write_text(KILLER)
    more = 'custom_imports = dict(imports=["killer"])\nobjectives = dict(next_token=dict(type="Fragile"))'
    Path("run.py").write_text(CONFIG.format(checkout=CHECKOUT, more=more))
    return "run.py"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The losses and the adapter of the config of `write_fragile`, of a run that is not killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("uninterrupted"))
        ended = finetune(write_fragile())
        assert ended.returncode == 0, ended.stderr[-2000:]
        return losses(), adapter()


@pytest.mark.parametrize("moment", ["mid-step", "saving", "between"])
def test_a_killed_run_continues_bit_for_bit(folder, uninterrupted, moment):
    config = write_fragile()
    killed = finetune(config, KILL_AT=moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    torso = Path("exp/run/latest/checkpoint-3")
    assert torso.exists() == (moment != "mid-step")
    assert (torso / "complete.json").exists() == (moment == "between")
    resumed = finetune(config, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    expected = {"mid-step": "checkpoint-2", "saving": "checkpoint-2", "between": "checkpoint-3"}[moment]
    assert f"continuing from {expected}" in resumed.stderr
    whole_losses, whole = uninterrupted
    assert losses() == whole_losses
    assert len(losses()) == 4
    assert all(torch.equal(whole[name], tensor) for name, tensor in adapter().items())


class KilledError(BaseException):
    """Stands for SIGKILL."""


def test_a_run_with_stored_features_and_shared_images_continues_bit_for_bit(
    write_config, write_rows, monkeypatch, caplog
):
    """The run dies in its third update, in the second epoch. It continues without the features that it had stored."""
    questions = ("Is it clear?", "Where is it?", "Which organ is it?")
    write_rows(*[{"image": f"{n}.png", "question": text, "answer": "a scan"} for n in range(3) for text in questions])
    config = write_config("""
model_args.update(lora_target="language")
data_args = dict(share_images=True, validation=None, test=None, train=dict(_delete_=True, type="VQADataset",
                 data_path="rows.jsonl", image_folder="pictures"))
training_args.update(gradient_accumulation_steps=4, gradient_checkpointing=True)
""")
    assert main([config, "--cfg-options", "training_args.output_dir=whole"]) == 0
    caplog.set_level("INFO")
    shared, calls, total = [], [], NextToken.total

    def die(objective, context):
        if objective.training:
            calls.append(1)
        if len(list(Path("exp/run/latest").glob("checkpoint-*/complete.json"))) == 2:
            raise KilledError
        return total(objective, context)

    row_of = SharedRow.of

    def of_layout(mask_BL, layout, **options):
        shared.append(list(layout.leaders))
        return row_of(mask_BL, layout, **options)

    monkeypatch.setattr(SharedRow, "of", of_layout)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(NextToken, "total", die)
        main([config])
    assert any(leaders != list(range(len(leaders))) for leaders in shared), "some questions share their image"
    assert (len(calls) > 2, len(list(VISION_CACHE.glob("*")))) == (True, 1)
    shutil.rmtree(VISION_CACHE)
    assert main([config, "--resume"]) == 0
    assert "continuing from checkpoint-2" in caplog.text
    assert losses() == losses("whole") and len(losses()) == 4
    expected = adapter("whole")
    assert all(torch.equal(expected[name], tensor) for name, tensor in adapter().items())


PLUGIN = '''
"""A dataset of a user."""
from mllm.dataset.base import ImageTextDataset
from mllm.registry import DATASETS
from mllm.structures import Sample, Turn


@DATASETS.register_module()
class YourMedicalDataset(ImageTextDataset):
    """One question and one answer about one image. Row: {"image", "question", "answer", "patient"}."""

    required = ("image", "question", "answer")

    def __init__(self, data_path: str, image_folder: str, modality: str):
        super().__init__(data_path, image_folder)
        self.modality = modality

    def parse(self, row: dict) -> Sample:
        return Sample(images=[self.read_image(row["image"])],
                      turns=[Turn("user", f"<image> {self.modality}: {row['question']}"),
                             Turn("assistant", row["answer"])],
                      group=row["patient"])
'''
SPLITS = """
custom_imports = dict(imports=["plugin"])
data_args = dict(
    train=dict(_delete_=True, type="{type}", data_path="rows.jsonl", image_folder="pictures", {more}),
    validation=None, test=None{rest})
"""


def test_a_dataset_class_outside_the_repository_is_used_by_name(write_config, write_rows):
    assert len(PLUGIN.strip().splitlines()) <= 25
    Path("plugin.py").write_text(PLUGIN)
    write_rows()
    config = write_config(SPLITS.format(type="YourMedicalDataset", more="modality='CT'", rest=""))
    assert main([config]) == 0
    assert "CT: What?" in Path("exp/run/latest/first_batch.md").read_text()


REAL = [
    ("dicom/CT_small.dcm", "CT"),
    ("dicom/MR_small.dcm", "MRI"),
    ("dicom/RG1_J2KI.dcm", "X-ray"),
    ({"path": "dicom/examples_ybr_color.dcm", "frames": 12}, "ultrasound"),
    ("dicom/color-pl.dcm", "ultrasound"),
    ("images/cxr_nih_00000001_000.png", "X-ray"),
    ("images/retina.jpg", "fundus"),
    ({"path": "nifti/anatomical.nii", "axis": "coronal"}, "MRI"),
]


def test_real_scans_are_trained_on_and_predicted(write_config, shared_data, capsys):
    from mllm.pipeline.predict import main as predict

    rows = [{"image": image, "question": "Which modality?", "answer": answer} for image, answer in REAL]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = (
        SPLITS.format(type="VQADataset", more="", rest="").replace('"plugin"', "").replace("pictures", str(shared_data))
    )
    faster = (
        "\nmodel_args.update(lora_dropout=0.0)\ntraining_args.update(max_steps=12, save_strategy='no', "
        "per_device_train_batch_size=8)"
    )
    main([write_config(config + faster)])
    assert losses()[-1] < losses()[0]
    capsys.readouterr()
    args = ["--adapter", "exp/run/latest/adapter", "--image", str(shared_data / "dicom" / "CT_small.dcm")]
    predict([*args, "--question", "Which modality?", "--max-new-tokens", "4"])
    assert isinstance(capsys.readouterr().out, str)


def test_resuming_a_finished_run_writes_the_same_files(write_config):
    config = write_config("training_args.update(max_steps=3)\nexport_args = dict(merged=True)")
    assert main([config]) == 0
    first = adapter()
    assert main([config, "--resume"]) == 0
    assert len(losses()) == 3
    assert all(torch.equal(first[name], tensor) for name, tensor in adapter().items())
    assert Path("exp/run/latest/merged/config.json").is_file()


def test_a_resumed_run_updates_the_results_of_the_same_model_only(write_config, caplog):
    run = Path("exp/run/latest")
    first = "training_args.update(max_steps=2)\ndata_args['compute_metric'] = 'accuracy'\n"
    main([write_config(first + "export_args = dict(merged=True)")])
    figures = json.loads((run / "merged" / "facts.json").read_text())["figures"]
    update_figures(run / "merged", {"accuracy": {"accuracy": -1.0}})
    main([write_config(first), "--resume"])
    assert json.loads((run / "merged" / "facts.json").read_text())["figures"] == figures

    caplog.clear()
    main([write_config(first + "training_args.update(max_steps=3)\ndata_args['test'] = None"), "--resume"])
    assert any("merged contains the model after 2 updates" in message for message in caplog.messages)
    assert json.loads((run / "facts.json").read_text())["figures"] == {}
    assert not (run / "metrics.json").exists() and not (run / "predictions.jsonl").exists()
    merged = json.loads((run / "merged" / "facts.json").read_text())
    assert (merged["updates"], merged["figures"]) == (2, figures)


def test_predictions_and_figures_are_written_even_if_the_merge_is_refused(write_config):
    """The only update changes the adapter by less than the precision of fp32, and merging refuses an unchanged one."""
    more = (
        "export_args = dict(merged=True)\ntraining_args.update(max_steps=1, warmup_steps=0, learning_rate=1e-60)\n"
        "data_args['compute_metric'] = 'accuracy'"
    )
    with pytest.raises(ConfigError, match="has no effect: all its B matrices are zero"):
        main([write_config(more)])
    run = Path("exp/run/latest")
    assert not (run / "merged").exists()
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 2
    figures = json.loads((run / "metrics.json").read_text())["figures"]
    assert figures == json.loads((run / "facts.json").read_text())["figures"] and "accuracy" in figures
    assert json.loads((run / "adapter" / "facts.json").read_text())["figures"] == figures
    assert "| accuracy |" in (run / "adapter" / "README.md").read_text()


def test_a_failed_start_in_an_explicit_folder_can_be_repeated(write_config):
    options = ["--cfg-options", "training_args.output_dir=mine", "training_args.max_steps=1", "data_args.test=None"]
    with pytest.raises(ConfigError, match="no_such_layer"):
        main([write_config(), *options, "model_args.lora_target='no_such_layer'"])
    assert Path("mine/.lock").is_file()
    assert main([write_config(), *options]) == 0
    assert Path("mine/adapter/adapter_config.json").is_file()
