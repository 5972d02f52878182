"""Two processes with unequal numbers of rows, texts without images, an evaluation and a resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from echo_files import write_echonet
from processes import CHECKOUT, finetune, finetune_in_processes, run_in_processes
from safetensors.torch import load_file

from mllm.engine.checkpoints import newest_checkpoint
from mllm.pipeline.command import USER_ERROR

MIXED = '''
"""Conversations of unlike length, of which two of three have no image."""
import os
import signal
import numpy as np
from PIL import Image
from mllm.dataset.base import SampleDataset
from mllm.engine.trainer import MultimodalTrainer
from mllm.registry import DATASETS
from mllm.structures import Sample, Turn

@DATASETS.register_module()
class Mixed(SampleDataset):
    """Noise and words."""
    def __init__(self, size: int):
        self.size = size
    def __len__(self):
        return self.size
    def describe(self, index, epoch=0):
        return f"row {index}"
    def group(self, index, epoch=0):
        return None
    def sample(self, index, epoch=0):
        rng = np.random.default_rng((index, epoch))
        images = [Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8))] * (index % 3 == 0)
        words = "lesion " * (1 + 5 * (index % 4))
        return Sample([Turn("user", "<image>" * len(images) + words), Turn("assistant", words)], images)

def dying_in(name):
    """Kill this process at the end of a method of the trainer after the fourth update."""
    method = getattr(MultimodalTrainer, name)
    def die(trainer, *inputs, **options):
        result = method(trainer, *inputs, **options)
        if trainer.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(MultimodalTrainer, name, die)

if os.environ.get("KILLED_RANK", "") == os.environ.get("RANK"):
    dying_in(os.environ["KILLED_IN"])
'''
# Nine samples in updates of four: the last update has one sample, and the second process a placeholder.
MORE = """
custom_imports = dict(imports=["mixed"])
model_args.update(lora_dropout=0.0)
data_args = dict(train=dict(_delete_=True, type="Mixed", size=9), validation=dict(_delete_=True, type="Mixed", size=3),
                 test=None, tokens_per_micro_batch=60)
training_args.update(optim="sgd", learning_rate=0.05, max_steps=5, eval_strategy="epoch", gradient_checkpointing=True,
                     per_device_eval_batch_size=1, save_total_limit=5)
"""


def _start(processes: int, *arguments: str) -> None:
    size = f"training_args.per_device_train_batch_size={4 // processes}"
    ended = finetune(*arguments, size) if processes == 1 else finetune_in_processes(processes, *arguments, size)
    assert ended.returncode == 0, ended.stderr[-3000:]


def _launch_and_kill(rank: int, method: str, *arguments: str) -> None:
    """Start two processes by `mllm launch`, as a user does, of which one dies in a method after the fourth update."""
    command = [str(CHECKOUT / "mllm/pipeline/launch.py"), "--nproc_per_node=2", "train", *arguments]
    command += ["training_args.per_device_train_batch_size=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    environment |= {"KILLED_RANK": str(rank), "KILLED_IN": method}
    ended = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 128 + signal.SIGKILL, ended.stderr[-3000:]
    assert ended.stderr.splitlines()[-1].startswith(f"process {rank} was ended by SIGKILL")
    assert "another process ended" not in ended.stderr and "Traceback" not in ended.stderr
    assert ended.stderr.count("compute_metric has no effect") == 1, "the first process alone warns about the config"


def _kill_without_launcher(rank: int, method: str, *arguments: str) -> None:
    """Let one of two processes that no launcher watches die in a method after the fourth update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KILLED_RANK", str(rank))
        patch.setenv("KILLED_IN", method)
        ended = finetune_in_processes(2, *arguments, "training_args.per_device_train_batch_size=2")
    assert ended.returncode == USER_ERROR, "that of the other process"
    message = f"process {1 - rank} ends, because another process ended or did not answer; "
    assert ended.stderr.splitlines()[-1].startswith(message) and "Traceback" not in ended.stderr


def _rows(run: str, key: str) -> list[float]:
    return [row[key] for row in json.loads((Path(run) / "training_log.json").read_text())["rows"] if key in row]


def _adapter(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


def test_uneven_shares_without_images_make_the_same_updates_and_continue_bit_for_bit(write_config):
    Path("mixed.py").write_text(MIXED)
    config = write_config(MORE)
    for processes, name in ((1, "one"), (2, "two")):
        _start(processes, config, "--cfg-options", f"training_args.output_dir={name}")
    assert (len(_rows("one", "loss")), len(_rows("one", "eval_loss"))) == (5, 2)
    assert _rows("two", "loss") == pytest.approx(_rows("one", "loss"), rel=1e-5)
    assert _rows("two", "eval_loss") == pytest.approx(_rows("one", "eval_loss"), rel=1e-5)
    actual = _adapter("two")
    for name, tensor in _adapter("one").items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-6, msg=name)

    whole, losses = _adapter("two"), _rows("two", "loss")
    for path in [Path("two/checkpoint-4"), Path("two/checkpoint-5"), Path("two/adapter")]:
        shutil.rmtree(path)
    resumed = [config, "--resume", "--cfg-options", "training_args.output_dir=two"]
    _launch_and_kill(0, "_save_optimizer_and_scheduler", *resumed)
    assert newest_checkpoint(Path("two")) == Path("two/checkpoint-3"), "the next one was not complete"
    _kill_without_launcher(1, "compute_loss", *resumed)
    assert newest_checkpoint(Path("two")) == Path("two/checkpoint-4"), "it is complete"
    _start(2, config, "--resume", "--cfg-options", "training_args.output_dir=two")
    assert _rows("two", "loss") == losses
    actual = _adapter("two")
    assert all(torch.equal(actual[name], tensor) for name, tensor in whole.items())

    shutil.rmtree("two/checkpoint-5")
    _start(1, config, "--resume", "--cfg-options", "training_args.output_dir=two")
    assert _rows("two", "loss") == pytest.approx(losses, rel=1e-5), "one process continues the updates of two"
    _check_shared_predictions("two/adapter")


def _check_shared_predictions(adapter: str) -> None:
    """Predict for a file of seven questions, of which two cannot be used, in one and in two processes."""
    questions = [{"question": "lesion " * (1 + number)} for number in range(5)]
    rows = [*questions[:2], {"question": ""}, *questions[2:], {"question": 7, "image": "absent.png"}]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--adapter", adapter, "--batch", "questions.jsonl", "--on-error", "skip", "--temperature", "1"]
    options += ["--max-new-tokens", "6"]
    for processes in (1, 2):
        ended = run_in_processes(processes, "predict.py", *options, "--out", f"answers{processes}.jsonl")
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert ended.stderr.count("skipped questions.jsonl") == 2, ended.stderr
        assert "5 predictions written" in ended.stderr
    texts = Path("answers1.jsonl").read_text()
    assert len({json.loads(line)["prediction"] for line in texts.splitlines()}) == 5
    assert Path("answers2.jsonl").read_text() == texts
    assert not list(Path().glob("*.part-*"))
    refused = run_in_processes(2, "predict.py", "--adapter", adapter, "--question", "What?")
    assert refused.returncode == 2 and "several processes share the rows of --batch" in refused.stderr


TRANSLATED = """
_base_ = ["{checkout}/config/_base_/models/t5gemma.py", "{checkout}/config/_base_/datasets/mtnt_en_fr.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
data_args = dict(train=dict(data_path="pairs.tsv"), validation=dict(data_path="pairs.tsv"), tokens_per_micro_batch=80)
training_args = dict(max_steps=4, learning_rate=0.05, optim="sgd", lr_scheduler_type="constant", warmup_steps=0,
                     eval_strategy="epoch", save_strategy="no", per_device_eval_batch_size=1, report_to=[])
"""


def test_an_encoder_decoder_trains_equally_on_two_processes(folder):
    """Seven pairs of sources and targets of different lengths, in updates of four."""
    pairs = [(f"The left lung. {'It is clear. ' * (n % 4)}", f"Le poumon. {'Net. ' * (n % 3)}") for n in range(7)]
    Path("pairs.tsv").write_text("".join(f"{n}\t{src}\t{dst}\n" for n, (src, dst) in enumerate(pairs)))
    Path("run.py").write_text(TRANSLATED.format(checkout=CHECKOUT))
    for processes, name in ((1, "one"), (2, "two")):
        _start(processes, "run.py", "--tiny", "--cfg-options", f"training_args.output_dir={name}")
    for key in ("loss", "eval_loss", "grad_norm"):
        assert _rows("two", key) == pytest.approx(_rows("one", key), rel=1e-4), key
    assert (len(_rows("one", "loss")), len(_rows("one", "eval_loss"))) == (4, 2)
    assert any(tensor.any() for name, tensor in _adapter("one").items() if "lora_B" in name)
    actual = _adapter("two")
    for name, tensor in _adapter("one").items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-6, msg=name)


PLACES = '''
"""Phantoms of which every other one has no lesion, and texts without an image."""
from mllm.dataset.single_image_dataset.scenes import PhantomBoxDataset
from mllm.registry import DATASETS
from mllm.structures import Sample, Turn

@DATASETS.register_module()
class Places(PhantomBoxDataset):
    """Lesions, none, and words."""
    def sample(self, index, epoch=0):
        if index % 3 == 2:
            return Sample([Turn("user", "Why?"), Turn("assistant", "Because.")])
        self.lesions = (0, 0) if index % 3 else (1, 2)
        return super().sample(index, epoch)
'''
WITH_HEADS = """
custom_imports = dict(imports=["places"])
model_args.update(lora_dropout=0.0, image_size=112, image_token_len=16,
                  trainable=dict(language="lora", vision="full", projector="full"),
                  heads=dict(box=dict(type="BoxHead", hidden=32), mask=dict(type="MaskHead", dim=32)))
model_args.pop("lora_target")
objectives = dict(next_token=dict(type="NextToken"), box=dict(type="BoxLoss"), mask=dict(type="MaskLoss"))
data_args = dict(train=dict(_delete_=True, type="Places", size=9, image_size=112), validation=None, test=None)
training_args.update(optim="sgd", learning_rate=0.05, max_steps=4, eval_strategy="no", max_grad_norm=0.0,
                     save_strategy="steps", save_steps=2)
"""


def test_heads_and_a_tower_in_full_train_equally_on_two_processes_and_continue_bit_for_bit(write_config):
    """Updates have batches with and without objects."""
    Path("places.py").write_text(PLACES)
    config = write_config(WITH_HEADS)
    for processes, name in ((1, "one"), (2, "two")):
        _start(processes, config, "--cfg-options", f"training_args.output_dir={name}")
    for key in ("loss", "box", "mask"):
        assert _rows("two", key) == pytest.approx(_rows("one", key), rel=1e-6), key
    assert max(_rows("one", "box")) > 0
    one, two = (load_file(Path(name) / "adapter" / "heads.safetensors") for name in ("one", "two"))
    assert {name.partition(".")[0] for name in one} >= {"vision", "projector", "heads"}
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5, msg=name)
    _assert_resumes("two", config, "checkpoint-4", "heads.safetensors")


def _assert_resumes(run: str, config: str, checkpoint: str, file: str) -> None:
    """Remove the last checkpoint and the export, resume on two processes, and compare losses and weights."""
    losses, whole = _rows(run, "loss"), load_file(Path(run) / "adapter" / file)
    shutil.rmtree(Path(run) / checkpoint)
    shutil.rmtree(Path(run) / "adapter")
    _start(2, config, "--resume", "--cfg-options", f"training_args.output_dir={run}")
    assert _rows(run, "loss") == losses
    again = load_file(Path(run) / "adapter" / file)
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


DISTILLED = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_student.py", "{checkout}/config/_base_/datasets/echonet.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(model_name_or_path="{student}", trainable="full", lora_target="vision",
                  heads=dict(measures=dict(dropout=0.0)))
distill_args = dict(_delete_=True, cache_folder="kept", teacher=dict(type="medsiglip", model_name_or_path="{teacher}"))
objectives = dict(feature_match=dict(teacher_layers=[1, 2, 3], grid=2))
data_args = dict(train=dict(data_path="echo", size=6), validation=None, test=None)
training_args = dict(max_steps=4, optim="sgd", learning_rate=1e-5, lr_scheduler_type="constant", warmup_steps=0,
                     max_grad_norm=0.0, eval_strategy="no", save_strategy="steps", save_steps=2, report_to=[],
                     dataloader_num_workers=0)
"""


def test_a_student_in_full_learns_equally_from_its_teacher_on_two_processes(folder, tiny_student, tiny_medsiglip):
    """Six patients in updates of four: the last update of an epoch has two."""
    write_echonet(Path("echo"), {"TRAIN": 6}, frames=30)
    Path("run.py").write_text(DISTILLED.format(checkout=CHECKOUT, student=tiny_student, teacher=tiny_medsiglip))
    for processes, name in ((1, "one"), (2, "two")):
        _start(processes, "run.py", "--cfg-options", f"training_args.output_dir={name}")
    for key in ("loss", "measures", "feature_match"):
        assert _rows("two", key) == pytest.approx(_rows("one", key), rel=1e-6), key
    one, two = (load_file(Path(name) / "adapter" / "heads.safetensors") for name in ("one", "two"))
    assert {name.partition(".")[0] for name in one} >= {"vision", "heads"}
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5, msg=name)
    _assert_resumes("two", "run.py", "checkpoint-4", "heads.safetensors")


ONE_SIDED = '''
"""Updates of two rows: the second one is unusable, and the first one has a box in every other update."""
import numpy as np
from mllm.dataset.single_image_dataset.scenes import PhantomBoxDataset
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import Sample, Turn

@DATASETS.register_module()
class OneSided(PhantomBoxDataset):
    """Lesions, words without a box, and errors, by their place in the first epoch."""
    def sample(self, index, epoch=0):
        place = list(np.random.default_rng((0, 0)).permutation(len(self))).index(index)
        if place % 2:
            raise DataError(f"row {index} cannot be used")
        if place % 4:
            return Sample([Turn("user", "Why?"), Turn("assistant", "Because.")])
        return super().sample(index, epoch)
'''
ONLY_BOXES = """
custom_imports = dict(imports=["one_sided"])
model_args.update(lora_dropout=0.0, heads=dict(box=dict(type="BoxHead", hidden=32)))
objectives = dict(_delete_=True, box=dict(type="BoxLoss"))
data_args = dict(train=dict(_delete_=True, type="OneSided", size=8, image_size=112), validation=None, test=None,
                 on_error="skip")
training_args.update(optim="sgd", learning_rate=0.05, max_steps=4, data_seed=0, save_strategy="no", warmup_steps=0)
"""


def test_a_process_without_a_usable_row_and_one_without_a_supervised_item_make_no_update(write_config):
    """The second process has no usable row at all, and every other row of the first one has no box."""
    Path("one_sided.py").write_text(ONE_SIDED)
    config = write_config(ONLY_BOXES)
    ends = []
    for processes, name in ((1, "one"), (2, "two")):
        size = f"training_args.per_device_train_batch_size={2 // processes}"
        options = [config, "--cfg-options", f"training_args.output_dir={name}", size]
        ends.append(finetune(*options) if processes == 1 else finetune_in_processes(processes, *options))
        assert ends[-1].returncode == 0, ends[-1].stderr[-3000:]
        assert "2 of 4 steps had no supervised item and made no update" in ends[-1].stderr
        assert len(_rows(name, "loss")) == 2
    assert _rows("two", "loss") == pytest.approx(_rows("one", "loss"), rel=1e-5)
    one, two = (load_file(Path(name) / "adapter" / "heads.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6, msg=name)


PRIVATE = """
custom_imports = dict(imports=["mixed"])
model_args.update(lora_dropout=0.0, image_size=112, image_token_len=16, lora_target="all")
data_args = dict(train=dict(_delete_=True, type="Mixed", size=9), validation=None, test=None)
training_args.update(optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", warmup_steps=0, max_steps=4,
                     eval_strategy="no", max_grad_norm=0.0, save_strategy="steps", save_steps=2)
privacy_args = dict(noise_multiplier=0.6, target_delta=1e-2, clip_norm=0.1, physical_batch_size=2, test_noise_seed=5)
"""


def test_a_private_draw_is_shared_and_its_noise_added_once(write_config):
    Path("mixed.py").write_text(MIXED)
    config = write_config(PRIVATE)
    for processes, name in ((1, "one"), (2, "two")):
        _start(processes, config, "--cfg-options", f"training_args.output_dir={name}")
    one, two = (json.loads((Path(name) / "privacy.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert (one["steps"], one["sample_rate"]) == (4, 4 / 9)
    assert "No guarantee" in one["guarantee"], "the noise is known"
    assert _rows("two", "loss") == pytest.approx(_rows("one", "loss"), rel=1e-5)
    actual = _adapter("two")
    for name, tensor in _adapter("one").items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-7, msg=name)
    # Four updates of SGD from zeros, each with noise of standard deviation sigma * C on the sum of 4 expected units.
    # Clipped gradients move the thousands of values by a norm of less than 4 * 0.5 * 0.1.
    moved = torch.cat([tensor.flatten() for name, tensor in _adapter("two").items() if "lora_B" in name])
    assert moved.std().item() == pytest.approx(4**0.5 * 0.5 * 0.6 * 0.1 / 4, rel=0.03)
    assert "lesion" not in Path("two/first_batch.md").read_text()
    whole = _adapter("two")
    for path in [Path("two/checkpoint-4"), Path("two/adapter"), Path("two/privacy.json")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _start(2, config, "--resume", "--cfg-options", "training_args.output_dir=two")
    assert json.loads(Path("two/privacy.json").read_text()) == one
    actual = _adapter("two")
    assert all(torch.equal(actual[name], tensor) for name, tensor in whole.items())
