"""Mistakes of a user and the messages of `finetune.py`: section by section, each through the command itself.

Every refusal is one sentence on standard error and exit code 2, without a traceback.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from PIL import Image

from mllm.config import hardware
from mllm.pipeline.command import run_command
from mllm.pipeline.finetune import main
from mllm.run import prepare

REPOSITORY = Path(__file__).resolve().parents[2]
DOWNLOAD = "get the weights with `bash scripts/download_medgemma.sh`, or try the config without them by --tiny"


@pytest.fixture
def train(write_config, capsys, tiny_medgemma):
    """A function that runs the command on a config with more lines; returns the exit code and the lines of stderr."""

    def run(more: str = "", *arguments: str, config: str | None = None) -> tuple[int, str]:
        base = f"model_args.update(model_name_or_path={str(tiny_medgemma)!r})\n"
        code = run_command(main, [config or write_config(base + more), *arguments])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def refused(train):
    """A function that checks a refusal: exit code 2, no traceback, and the message as the last line of stderr."""

    def run(sentence: str, more: str = "", *arguments: str, config: str | None = None) -> str:
        code, error = train(more, *arguments, config=config)
        assert code == 2, error
        assert "Traceback" not in error
        assert sentence in error.splitlines()[-1]
        return error

    return run


# Faults of configs and command lines: lines at the end of the config (from line 11 on), arguments, and the message.
CONFIGS = {
    "unknown key": (
        "model_args.update(lorar=8)",
        "",
        "run.py:11: unknown key 'lorar' in model_args: did you mean 'lora_r'?",
    ),
    "unknown key at the top": (
        "model_arg = dict()",
        "",
        "run.py:11: unknown key 'model_arg' at the top level: did you mean",
    ),
    "unknown training argument": (
        "training_args.update(evaluation_strategy='no')",
        "",
        "run.py:11: unknown key 'evaluation_strategy' in training_args: did you mean 'eval_strategy'?",
    ),
    "unknown key of a dataset": (
        "data_args['train'].update(sizes=3)",
        "",
        "run.py:11: unknown key 'sizes' in data_args.train (DummyDataset): did you mean 'size'?",
    ),
    "unknown model type": (
        "model_args.update(type='medgema')",
        "",
        "run.py:11: unknown type 'medgema' in registry models: did you mean 'medgemma'? (model_args)",
    ),
    "unknown dataset type": (
        "data_args['train'].update(type='VQADatset')",
        "",
        "run.py:11: unknown type 'VQADatset' in registry datasets: did you mean 'VQADataset'? (data_args.train)",
    ),
    "unknown objective": (
        "objectives = dict(next_token=dict(type='NextTokn'))",
        "",
        "run.py:11: unknown type 'NextTokn' in registry objectives: did you mean 'NextToken'? (objectives.next_token)",
    ),
    "a Python error": ("_size = 4\n_other = sise", "", "run.py:12: NameError: name 'sise' is not defined"),
    "a syntax error": ("model_args = dict(", "", "run.py:11: SyntaxError: '(' was never closed"),
    "a conflict": (
        "model_args.update(load_in_4bit=True)\nmodel_args.update(load_in_8bit=True)",
        "",
        "run.py:11: load_in_4bit=True and load_in_8bit=True (run.py:12) exclude each other: set one of them to False",
    ),
    "Shikra with a Gemma checkpoint": (
        "model_args.update(type='shikra')",
        "",
        "it is a Gemma 3 checkpoint; use type='medgemma'",
    ),
    "missing weights": (
        "model_args.update(model_name_or_path='ckpt/medgemma-4b-it')",
        "",
        f"there is no checkpoint in 'ckpt/medgemma-4b-it'; {DOWNLOAD}",
    ),
    "no training split": (
        "data_args['train'] = None",
        "",
        "run.py:11: data_args.train is None or absent, so there are no training data: set it to a dataset",
    ),
    "no update": (
        "training_args.update(max_steps=0)",
        "",
        "run.py:11: max_steps=0 trains nothing: set it to at least 1",
    ),
    "no epoch": (
        "training_args.update(max_steps=-1, num_train_epochs=0)",
        "",
        "run.py:11: num_train_epochs=0 trains nothing: set it above 0, or max_steps to at least 1",
    ),
    "an override without '='": (
        "",
        "--cfg-options model_args.lora_r",
        "--cfg-options: 'model_args.lora_r' must have the",
    ),
    "an override of an unknown key": (
        "",
        "--cfg-options model_args.lorar=8",
        "--cfg-options: unknown key 'lorar' in model_args: did you mean 'lora_r'?",
    ),
    "an override of an unknown section": (
        "",
        "--cfg-options model.r=8",
        "--cfg-options: unknown key 'model' at the top",
    ),
    "an override inside of a number": (
        "",
        "--cfg-options model_args.lora_r.x=8",
        "--cfg-options: model_args.lora_r is 4 and has no key 'x'",
    ),
    "an override of a wrong type": (
        "",
        "--cfg-options model_args.lora_r=many",
        "--cfg-options: model_args.lora_r must be an integer or None, not 'many'",
    ),
    "--resume without a run": ("", "--resume", "--resume: exp/run/latest has no complete checkpoint to continue from"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_invalid_config_is_one_message_and_leaves_no_run_folder(refused, case):
    more, arguments, sentence = CONFIGS[case]
    refused(sentence, more, *arguments.split())
    assert not Path("exp").exists()


def test_a_missing_or_invalid_config_file(refused):
    shipped = REPOSITORY / "config" / "training_configs"
    error = refused("config 'medgemma_4gb_tst.py' not found: did you mean ", config="medgemma_4gb_tst.py")
    assert str(shipped / "medgemma_4gb_test.py") in error
    Path("configs").mkdir()
    Path("notes.txt").write_text("")
    refused("config 'configs' is not a Python file", config="configs")
    refused("config 'notes.txt' is not a Python file", config="notes.txt")


def test_an_output_dir_is_never_overwritten(refused):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("precious")
    more = "training_args.update(output_dir='mine')"
    refused(
        "training_args.output_dir mine is not empty; it contains no checkpoint to resume, so choose another folder",
        more,
    )
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_debug_shows_the_traceback(train):
    code, error = train("model_args.update(lora_r=-1)", "--debug")
    assert code == 2
    assert "Traceback" in error
    assert "model_args.lora_r must be" in error.splitlines()[-1]


def test_all_old_packages_are_named(refused, monkeypatch):
    old = {"transformers": "4.57.1", "tokenizers": "0.22.1", "peft": "0.15.0"}
    real = hardware.installed
    monkeypatch.setattr(hardware, "installed", lambda names: {**real(names), **old})
    error = refused("transformers and tokenizers and peft are too old")
    assert "transformers 4.57.1, tokenizers 0.22.1, peft 0.15.0" in error
    del old["peft"], old["transformers"]
    assert "transformers " in refused("tokenizers is too old (found transformers")


def test_a_gated_model_without_a_login(refused, monkeypatch):
    def gated(url: str, **options: object) -> None:
        raise GatedRepoError("401", response=SimpleNamespace(headers={}, request=None))

    def wrapped(name: str, **options: object) -> None:
        try:
            gated(name)
        except GatedRepoError as cause:
            raise OSError("You are trying to access a gated repo.") from cause  # as transformers wraps it

    monkeypatch.setattr("mllm.models.backbone.load_errors.get_hf_file_metadata", gated)
    monkeypatch.setattr("mllm.models.backbone.loading.AutoConfig.from_pretrained", wrapped)
    refused(
        "'google/medgemma-4b-it' is a gated model: accept its license at https://huggingface.co/google/medgemma-4b-it "
        "and log in with `hf auth login`",
        "model_args.update(model_name_or_path='google/medgemma-4b-it')",
    )


@pytest.mark.parametrize(("key", "fix"), [("bf16", "bf16=False and fp16=True"), ("tf32", "tf32=False")])
def test_a_turing_card_has_no_bf16(refused, monkeypatch, key, fix):
    card = hardware.Hardware("cuda", "Tesla T4", (7, 5), 16 << 30, 1, 64 << 30, 8)
    monkeypatch.setattr(prepare, "detect", lambda: card)
    refused(
        f"run.py:11: {key}=True needs compute capability 8.0 or newer and Tesla T4 has compute capability 7.5: "
        f"set {fix} in training_args",
        f"training_args.update({key}=True)",
    )


# Faults of rows: the row, and the message after its location.
ROWS = {
    "missing image": ({"image": "none.png", "question": "q", "answer": "a"}, "image pictures/none.png does not exist"),
    "truncated image": (
        {"image": "cut.png", "question": "q", "answer": "a"},
        "pictures/cut.png is truncated or damaged",
    ),
    "unreadable image": ({"image": "text.png", "question": "q", "answer": "a"}, "pictures/text.png is not an image"),
    "DICOM without pixels": (
        {"image": "ecg.dcm", "question": "q", "answer": "a"},
        "pictures/ecg.dcm has no pixels (it is a waveform such as an ECG, a report or a plan",
    ),
    "missing field": ({"image": "0.png", "answer": "a"}, "field 'question' is missing"),
    "wrong column name": (
        {"image": "0.png", "questoin": "q", "answer": "a"},
        "field 'question' is missing: did you mean 'questoin'?",
    ),
    "empty field": ({"image": "0.png", "question": "q", "answer": ""}, "field 'answer' is empty"),
    "bad JSON": ('{"image": "0.png", "question', "not valid JSON (Unterminated string starting at column 20)"),
    "a row that is a list": ("[1, 2]", "a row must be an object {...}, not a list"),
}
SPLIT = "dict(_delete_=True, type='VQADataset', data_path='{}', image_folder='pictures')"
TRAIN = f"train={SPLIT.format('rows.jsonl')}"


def splits(validation: str | None = None, test: str | None = None, **more: str) -> str:
    """Return config lines that read rows.jsonl and other files for the other splits, for one update."""
    others = {"validation": validation, "test": test}
    named = [f"{name}={SPLIT.format(path) if path else None}" for name, path in others.items()]
    named += [f"{key}={value!r}" for key, value in more.items()]
    return (
        f"data_args = dict({', '.join([TRAIN, *named])}, gen_kwargs=dict(max_new_tokens=3))\n"
        "training_args.update(max_steps=1, per_device_train_batch_size=5)\n"
    )


@pytest.fixture
def write_bad(write_rows):
    """Write valid rows, invalid ones after them, and the files of the invalid ones."""

    def write(*rows: object, name: str = "rows.jsonl") -> None:
        write_rows(*rows, name=name)
        noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save("pictures/cut.png")
        os.truncate("pictures/cut.png", 3000)
        Path("pictures/text.png").write_text("not a picture")
        write_ecg(Path("pictures/ecg.dcm"))

    return write


def write_ecg(path: Path) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = TwelveLeadECGWaveformStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ecg = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ecg.SOPClassUID, ecg.Modality = TwelveLeadECGWaveformStorage, "ECG"
    ecg.save_as(path)


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_named_with_file_and_line(refused, write_bad, case):
    row, reason = ROWS[case]
    write_bad(row)
    refused(f"rows.jsonl, line 5: {reason}", splits())


@pytest.mark.parametrize("case", ["missing image", "truncated image", "bad JSON"])
def test_a_bad_row_in_a_worker_has_the_same_message(refused, write_rows, write_bad, case):
    row, reason = ROWS[case]
    write_rows()
    write_bad(row, name="other.jsonl")
    workers = "training_args.update(dataloader_num_workers=2, eval_strategy='steps', eval_steps=1)"
    refused(f"other.jsonl, line 5: {reason}", splits(validation="other.jsonl") + workers)


def test_a_bad_row_of_the_test_split_is_found_before_the_training(refused, write_rows, write_bad):
    write_rows()
    write_bad(ROWS["missing image"][0], name="other.jsonl")
    refused("other.jsonl, line 5: image pictures/none.png does not exist", splits(test="other.jsonl"))
    assert not Path("exp").exists()


def test_a_damaged_image_of_the_test_split_does_not_cost_the_adapter(refused, train, write_rows, write_bad):
    write_rows()
    good, (damaged, reason) = {"image": "0.png", "question": "q", "answer": "a"}, ROWS["truncated image"]
    good["answer"] *= 99
    # Of 20 rows, every second one is decoded, and the 16 longest ones.
    write_bad(good, damaged, *[good] * 14, name="other.jsonl")
    refused(f"other.jsonl, line 6: {reason}", splits(test="other.jsonl"))
    assert Path("exp/run/latest/adapter/adapter_model.safetensors").is_file()
    Image.new("RGB", (20, 20)).save("pictures/cut.png")
    assert train(splits(test="other.jsonl"), "--resume")[0] == 0
    assert len(Path("exp/run/latest/predictions.jsonl").read_text().splitlines()) == 20
    assert "accuracy" in Path("exp/run/latest/adapter/README.md").read_text()


def test_an_empty_absent_or_unknown_dataset_is_refused(refused, write_rows):
    write_rows()
    Path("rows.jsonl").write_text("")
    refused("rows.jsonl is empty", splits())
    Path("rows.jsonl").rename("row.jsonl")
    reason = "data_args.train: data_path rows.jsonl does not exist: did you mean 'row.jsonl'?"
    assert re.match(r"run\.py:\d+: data_args\.train: ", refused(reason, splits()).splitlines()[-1])
    Path("rows.txt").write_text("x")
    refused(
        "data_path rows.txt must end in .json, .jsonl, .csv, .tsv or .parquet",
        splits().replace("rows.jsonl", "rows.txt"),
    )
    assert not Path("exp").exists()


def test_skipped_rows_are_counted_and_listed_whatever_the_split(train, write_bad):
    encoded = {"image": "0.png", "question": "Is this <end_of_turn>?", "answer": "a"}  # the check of rows accepts it
    rows = [*(row for row, _ in ROWS.values()), encoded]
    for name in ("rows", "other", "last"):
        write_bad(*rows, name=f"{name}.jsonl")
    more = splits(validation="other.jsonl", test="last.jsonl", on_error="skip")
    # With a batch of one, some updates have no usable row.
    more += (
        "training_args.update(per_device_train_batch_size=1, max_steps=-1, num_train_epochs=1, eval_strategy='epoch', "
        "dataloader_num_workers=2)"
    )
    code, error = train(more)
    assert code == 0, error
    run = Path("exp/run/latest")
    assert f"30 rows were skipped; {run.resolve().relative_to(Path.cwd())}/skipped_rows.txt lists them" in error
    listed = [line for line in (run / "skipped_rows.txt").read_text().splitlines() if line[0] != "#"]
    places = [f"{name}.jsonl, line {line}" for name in ("rows", "other", "last") for line in range(5, 15)]
    assert sorted(line.split(": ")[0] for line in listed) == sorted(places)
    assert all(any(reason in line for line in listed) for _, reason in ROWS.values())
    summary = json.loads((run / "data_summary.json").read_text())
    assert {name: split["skipped"] for name, split in summary.items()} == dict(train=10, validation=10, test=10)
    assert summary["train"]["sources"] == [{"file": "rows.jsonl", "rows": 14, "skipped": 10}]
    card = (run / "adapter" / "README.md").read_text()
    assert "train: `VQADataset`, 14 samples, of which 10 could not be read and were skipped" in card
    facts = json.loads((run / "facts.json").read_text())
    assert (facts["updates"], facts["idle_steps"]) == (4, 10)
    assert "10 of 14 steps had no supervised item and made no update, but count in max_steps" in error
    steps = [row for row in json.loads((run / "training_log.json").read_text())["rows"] if "loss" in row]
    assert len(steps) == 4
    assert all(row["loss"] > 1 for row in steps)
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 4


def test_a_split_without_any_usable_row_is_refused_even_when_rows_are_skipped(refused, write_bad):
    write_bad()
    Path("rows.jsonl").write_text(3 * (json.dumps(ROWS["missing image"][0]) + "\n"))
    refused("no row of the training split could be used; one of them: rows.jsonl, line ", splits(on_error="skip"))


def test_a_loss_that_is_not_a_number_keeps_the_last_good_checkpoint(refused):
    error = refused("the loss is nan at step 3", "training_args.update(learning_rate=1e30, max_grad_norm=1e30)")
    checkpoint = Path("exp/run/latest").resolve().relative_to(Path.cwd()) / "checkpoint-2"
    assert f"the last good checkpoint is {checkpoint}; lower learning_rate (now 1e+30)" in error
    assert (checkpoint / "complete.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
def test_a_full_disk_keeps_the_checkpoints_from_before(refused, train, monkeypatch):
    save = torch.save

    def fill(value: object, path: object, *args: object, **options: object) -> None:
        save(value, "/dev/full" if "checkpoint-3" in str(path) else path, *args, **options)

    with monkeypatch.context() as full:
        full.setattr(torch, "save", fill)
        refused("the disk is full while writing: free some space and run again; files and checkpoints that were")
    complete = sorted(path.parent.name for path in Path("exp/run/latest").glob("checkpoint-*/complete.json"))
    assert complete == ["checkpoint-1", "checkpoint-2"]
    code, error = train("", "--resume")
    assert code == 0
    assert "continuing from checkpoint-2" in error


GREEDY = '''
"""An objective that asks for more memory than there is, from one moment on."""
import torch
from mllm.objectives.text import NextToken
from mllm.registry import OBJECTIVES

ERRORS = dict(
    card=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.60 GiB"),
    host=RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
)

@OBJECTIVES.register_module(force=True)
class Greedy(NextToken):
    """Next-token prediction that finds no memory."""
    def __init__(self, memory, patience=0):
        super().__init__()
        self.memory, self.patience = memory, patience
    def total(self, context):
        self.patience -= 1
        if self.patience < 0:
            raise ERRORS[self.memory]
        return super().total(context)
'''
ADVICE = (
    "Lower, in this order: training_args.per_device_train_batch_size (now 2; raise gradient_accumulation_steps, now 1, "
    "to keep the update), then training_args.gradient_checkpointing (now False; turn it on), then "
    "model_args.max_length (now 256), then model_args.image_token_len (now 16), then model_args.image_size (now 112), "
    "then model_args.load_in_4bit (now False; turn it on), then model_args.lora_r (now 4)"
)


@pytest.mark.parametrize(
    ("memory", "patience", "moment"), [("card", 0, ""), ("card", 4, " at step 3"), ("host", 4, " at step 3")]
)
def test_out_of_memory_says_what_to_lower_with_the_values_of_this_config(refused, memory, patience, moment):
    Path("greedy.py").write_text(GREEDY)
    objective = f"dict(_delete_=True, type='Greedy', memory='{memory}', patience={patience})"
    more = f"custom_imports = dict(imports=['greedy'])\nobjectives = dict(next_token={objective})"
    refused(f"out of memory{moment}. {ADVICE}", more)


INTERRUPTING = '''
"""An objective during which somebody presses Ctrl-C."""
import os, signal
from mllm.objectives.text import NextToken
from mllm.registry import OBJECTIVES

@OBJECTIVES.register_module(force=True)
class Interrupting(NextToken):
    """Next-token prediction that is interrupted in the third update."""
    calls = 0
    def total(self, context):
        self.calls += 1
        if self.calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return super().total(context)
'''


@pytest.fixture
def ctrl_c():
    """Set the default handling of Ctrl-C, which a process in the background may ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interruption_names_the_newest_checkpoint(train, ctrl_c):
    Path("interrupting.py").write_text(INTERRUPTING)
    more = "custom_imports = dict(imports=['interrupting'])\nobjectives = dict(next_token=dict(type='Interrupting'))"
    code, error = train(more)
    assert code == 130
    assert "Traceback" not in error
    checkpoint = Path("exp/run/latest").resolve().relative_to(Path.cwd()) / "checkpoint-2"
    assert error.splitlines()[-1] == f"interrupted; 2 updates were made, and --resume continues from {checkpoint}"


def test_a_run_without_a_validation_split_is_not_evaluated(train):
    code, error = train("data_args['validation'] = None\ntraining_args.update(eval_strategy='steps', max_steps=1)")
    assert code == 0
    assert "no validation split: eval_strategy 'steps' is off" in error


def test_two_runs_in_the_same_second_have_different_folders(train, monkeypatch):
    seconds = iter(["20260102_030405", "20260102_030405", "20260102_030406"])
    monkeypatch.setattr(time, "strftime", lambda form, *moment: next(seconds))
    more = "training_args.update(max_steps=1, save_strategy='no', report_to=[])\ndata_args['test'] = None"
    assert train(more)[0] == train(more)[0] == 0
    assert {path.name for path in Path("exp/run").iterdir()} == {"20260102_030405", "20260102_030406", "latest"}
    assert Path("exp/run/latest").resolve().name == "20260102_030406"
