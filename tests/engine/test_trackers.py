"""Trackers of runs: their figures, what they store besides, and their failures."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mllm.config.training_args import fill_defaults
from mllm.engine.trackers import Tracker
from mllm.errors import ConfigError
from mllm.pipeline.finetune import main

CANARY = "Zq7Kanari"
"""Part of every path and text of the data, and of the output folder."""
MORE = f"""
_rows = dict(_delete_=True, type="VQADataset", image_folder="pictures")
data_args = dict(train=dict(_rows, data_path="{CANARY}.jsonl"), validation=dict(_rows, data_path="validation.jsonl"),
                 test=None, compute_metric=[])
training_args.update(max_steps=2, save_strategy="no", eval_strategy="steps", eval_steps=2, report_to={{trackers}},
                     output_dir="{CANARY}-folder/run", run_name="first")
"""


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory):
    """The folder in which trackio stores everything; the package reads its place when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("trackio")
        patch.setenv("TRACKIO_DIR", str(folder))
        pytest.importorskip("trackio")
        yield folder


def train(write_config, write_rows, trackers: list[str]) -> tuple[Path, list[dict[str, float]]]:
    """Train two updates on rows with canaries, and return the run folder and the rows of its log."""
    row = {"image": "0.png", "question": f"Does {CANARY} smoke?", "answer": CANARY, "patient": CANARY}
    write_rows(row, name=f"{CANARY}.jsonl")
    write_rows(name="validation.jsonl")
    assert main([write_config(MORE.format(trackers=trackers))]) == 0
    folder = Path(f"{CANARY}-folder/run")
    return folder, json.loads((folder / "training_log.json").read_text())["rows"]


def figures(rows: list[dict[str, float]]) -> dict[tuple[str, int], float]:
    """Return each figure of a log under the name that trackers of transformers give it, and its step."""
    return {
        (f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}", int(row["step"])): value
        for row in rows
        for name, value in row.items()
        if name != "step"
    }


def assert_public(folder: Path) -> None:
    """Assert that no file has a path or a text of the data, or a path of the machine."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert CANARY.encode() not in content and b"tiny-medgemma" not in content, path
        assert str(Path.cwd()).encode() not in content, path


def test_tensorboard_has_the_figures_of_the_log_and_no_path(write_config, write_rows):
    folder, rows = train(write_config, write_rows, ["tensorboard"])
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    stored = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    expected = figures(rows)
    assert {name for name, _ in expected} >= {"train/loss", "train/learning_rate", "eval/loss"}
    assert {key: stored[key] for key in expected} == pytest.approx(expected, rel=1e-6)  # stored as 32-bit floats
    text = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    settings = json.loads(text)
    assert (settings["learning_rate"], settings["model_args.lora_r"], settings["max_steps"]) == (1e-3, 4, 2)
    assert settings["lr_scheduler_type"] == "cosine" and "output_dir" not in settings
    assert_public(folder / "tensorboard")


def test_trackio_has_the_figures_of_the_log_and_no_path(trackio_folder, write_config, write_rows):
    _, rows = train(write_config, write_rows, ["trackio"])
    with sqlite3.connect(trackio_folder / "huggingface.db") as database:
        entries = [json.loads(entry) for (entry,) in database.execute("select metrics from metrics order by id")]
        ((name, settings),) = database.execute("select run_name, config from configs")
    stored = {(key, entry["train/global_step"]): value for entry in entries for key, value in entry.items()}
    expected = figures(rows)
    assert {key: stored[key] for key in expected} == expected
    assert name == "first" and json.loads(settings)["model_args.lora_r"] == 4
    assert_public(trackio_folder)


class Failing(TrainerCallback):
    """Tracker whose server cannot be reached at one event."""

    def __init__(self, event: str) -> None:
        self.event, self.calls = event, list[str]()

    def on_train_begin(self, *args, **kwargs):
        self._call("on_train_begin")

    def on_log(self, *args, **kwargs):
        self._call("on_log")

    def _call(self, event: str) -> None:
        self.calls.append(event)
        if event == self.event:
            raise ConnectionError("no route\nto host")


def call(tracker: Tracker, *events: str) -> None:
    args, state = TrainingArguments("out", report_to=[]), TrainerState(global_step=7)
    for event in events:
        getattr(tracker, event)(args, state, TrainerControl(), logs={"loss": 1.0})


def test_a_tracker_that_cannot_start_ends_the_run_in_one_sentence():
    with pytest.raises(ConfigError, match="report_to='mlflow' cannot be used: no route to host; set it up, or remove"):
        call(Tracker("mlflow", Failing("on_train_begin"), None, {}), "on_train_begin")


def test_a_tracker_that_fails_later_is_left_out_with_a_warning(caplog):
    callback = Failing("on_log")
    call(Tracker("mlflow", callback, None, {}), "on_train_begin", "on_log", "on_log", "on_train_end")
    assert callback.calls == ["on_train_begin", "on_log"]
    assert caplog.text.count("the tracker mlflow failed at step 7 and gets no more figures: no route to host") == 1


def test_the_settings_of_a_tracker_are_not_those_of_the_trainer():
    seen = {}

    class Storing(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.update(json.loads(args.to_json_string()), name=args.run_name)

    call(Tracker("wandb", Storing(), "first", {"lora_r": 4}), "on_train_begin")
    assert seen == {"lora_r": 4, "name": "first"}
    assert "output_dir" in fill_defaults({}), "a field that would be stored otherwise"
