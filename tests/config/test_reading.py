from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.config.merging import merge_config
from mllm.config.origins import Origins, display_path
from mllm.config.reading import read_config
from mllm.config.training_args import changed_values
from mllm.errors import ConfigError


def sentence(path, *overrides) -> str:
    with pytest.raises(ConfigError) as excinfo:
        read_config(path, overrides)
    return str(excinfo.value)


def test_three_bases_and_the_differences(write, bases):
    config = read_config(write(bases + "model_args = dict(lora_r=8)\ntraining_args = dict(max_steps=3)\n"))
    assert config.name == "run"
    assert config.model_args.type == "medgemma" and config.model_args.lora_r == 8
    assert changed_values(config.training_args) == {"learning_rate": 1e-4, "max_steps": 3}
    assert config.data_args.train == {"type": "Phantoms", "size": 8, "tasks": ("modality",)}
    assert config.data_args.validation is None
    assert config.objectives == {"next_token": {"type": "NextToken"}}
    assert type(config.data_args.train) is dict and type(config.training_args) is dict


def test_a_config_can_derive_from_another_run(write, bases):
    write(bases + "model_args = dict(lora_r=8)\n", "first.py")
    config = read_config(write('_base_ = "first.py"\nmodel_args = dict(max_length=77)\n'))
    assert (config.model_args.lora_r, config.model_args.max_length) == (8, 77)
    assert config.origin("model_args", "lora_r") == "first.py:2"
    assert config.origin("model_args", "type") == "model.py:2"


def test_bases_by_absolute_path_and_from_another_directory(write, bases, tmp_path, monkeypatch):
    names = ", ".join(repr(str(tmp_path / name)) for name in ("model.py", "data.py", "runtime.py"))
    run = write(f"_base_ = [{names}]\n", "elsewhere/run.py")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_config(run).model_args.type == "medgemma"
    assert read_config("run.py").path == run
    folder = write('_base_ = ["{{ fileDirname }}/../model.py"]\n', "elsewhere/folder.py")
    assert read_config(folder).model_args.type == "medgemma"


def test_two_bases_that_share_a_key(write, bases):
    write("training_args = dict(max_steps=1)\n", "other.py")
    assert sentence(write('_base_ = ["model.py", "runtime.py", "other.py"]\n')) == (
        "run.py:1: two bases write 'training_args': runtime.py:1 and other.py:1; bases must not share a top-level key, "
        "so derive from one of them and write the difference"
    )


def test_a_base_that_does_not_exist(write, bases, tmp_path):
    path = write('_base_ = [\n    "model.py",\n    "nothing.py",\n]\n')
    assert sentence(path) == f"run.py:3: the base '{tmp_path / 'nothing.py'}' does not exist"


def test_a_file_that_is_its_own_base(write):
    write('_base_ = "run.py"\n', "other.py")
    assert sentence(write('_base_ = "other.py"\n')) == "run.py: the file is its own base, by way of other.py"


def test_the_message_about_an_absent_file_lists_similar_names(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    message = sentence("config/training_configs/medgemma_4gb_tset.py")
    assert message.startswith(
        "config 'config/training_configs/medgemma_4gb_tset.py' not found: did you mean "
        "config/training_configs/medgemma_4gb_test.py"
    )
    assert "config/training_configs/medgemma_4gb_test.py" in sentence("medgemma_4gb_test")
    assert "config/training_configs/medgemma_cpu_demo.py" in sentence("zzz.py")


def test_not_a_python_file(write, tmp_path):
    (tmp_path / "run.yaml").write_text("a: 1")
    assert sentence("run.yaml") == "config 'run.yaml' is not a Python file"
    assert sentence(tmp_path) == f"config '{tmp_path}' is not a Python file"


def test_python_errors_name_file_and_line(write, bases):
    assert sentence(write(bases + "\nmodel_args = dict(lora_r=x)\n")) == "run.py:3: NameError: name 'x' is not defined"
    json_literal = "run.py:3: NameError: name 'true' is not defined: write True"
    assert sentence(write(bases + "\nmodel_args = dict(use_dora=true)\n")) == json_literal
    assert sentence(write(bases + "model_args = dict(lora_r=1\n")) == "run.py:2: SyntaxError: '(' was never closed"
    write("import os\ntraining_args = dict(max_steps=int('a'))\n", "runtime.py")
    message = "runtime.py:2: ValueError: invalid literal for int() with base 10: 'a'"
    assert sentence(write(bases)) == message


def test_python_error_inside_a_function_of_the_config(write, bases):
    text = bases + "def _rank():\n    return 1 / 0\nmodel_args = dict(lora_r=_rank())\n"
    assert sentence(write(text)) == "run.py:3: ZeroDivisionError: division by zero"


def test_overrides(write, bases):
    path = write(bases)
    config = read_config(
        path,
        [
            "model_args.lora_r=8",
            "model_args.lora_target=(q|k)_proj",
            "model_args.system=You are careful, and brief.",
            "training_args.learning_rate=1e-3",
            "training_args.bf16=true",
            "training_args.report_to=tensorboard,wandb",
            "data_args.train.tasks=[modality, count]",
            "data_args.train.modalities=None",
            "data_args.validation=None",
        ],
    )
    assert config.model_args.lora_r == 8
    assert config.model_args.lora_target == "(q|k)_proj"
    assert config.model_args.system == "You are careful, and brief."
    changed = {"learning_rate": 1e-3, "bf16": True, "report_to": ["tensorboard", "wandb"]}
    assert changed_values(config.training_args) == changed
    assert config.data_args.train["tasks"] == ["modality", "count"] and config.data_args.train["modalities"] is None
    assert config.origin("model_args", "lora_r") == "--cfg-options"


def test_an_override_without_equals_sign(write, bases):
    assert sentence(write(bases), "model_args.lora_r") == (
        "--cfg-options: 'model_args.lora_r' must have the form key.key=value, such as model_args.lora_r=8, without "
        "spaces"
    )


def test_an_override_below_a_value_that_is_no_dict(write, bases):
    path = write(bases + "data_args = dict(validation=None)\n")
    assert sentence(path, "data_args.validation.size=3") == (
        "--cfg-options: data_args.validation is None and has no key 'size'"
    )


def test_an_override_inside_a_list_changes_a_dict_of_it(write, bases):
    path = write(bases + "data_args = dict(train=dict(transforms=[dict(type='Resize', size=3), dict(type='Pad')]))\n")
    for key in ("x.size", "2.size", "1"):
        assert sentence(path, f"data_args.train.transforms.{key}=4") == (
            "--cfg-options: data_args.train.transforms is a list of 2: set all of it, or a key of one of its dicts by "
            "its number from 0"
        )
    merged = merge_config(Path(path), Origins(), ["data_args.train.transforms.0.size=4"])
    assert merged["data_args"]["train"]["transforms"] == [{"type": "Resize", "size": 4}, {"type": "Pad"}]


def test_a_dict_as_an_override_changes_keys_of_a_dict_and_replaces_other_values(write, bases):
    path = write(
        bases + "data_args = dict(train=dict(type='DummyDataset', size=3))\nmodel_args = dict(image_size=None)\n"
    )
    config = read_config(path, ["data_args.train={'size': 5}"])
    assert (config.data_args.train["type"], config.data_args.train["size"]) == ("DummyDataset", 5)


def test_an_override_of_an_unknown_section_names_the_command_line(write, bases):
    assert sentence(write(bases), "model.lora_r=3").startswith("--cfg-options: unknown key 'model' at the top level")


def test_an_update_of_a_dict_is_the_origin_of_its_keys(write, bases):
    path = write(bases + "model_args = dict(lora_r=4)\nmodel_args.update(\n    lorar=8,\n)\n")
    assert sentence(path) == "run.py:4: unknown key 'lorar' in model_args: did you mean 'lora_r'?"
    path = write(bases + "data_args = dict(train=dict(size=3))\ndata_args['train'].update(sizes=8)\n")
    assert sentence(path).startswith("run.py:3: unknown key 'sizes' in data_args.train")


def test_auxiliary_names_begin_with_an_underscore(write, bases):
    config = read_config(write(bases + "_rank = 4\nmodel_args = dict(lora_r=_rank)\n"))
    assert config.model_args.lora_r == 4
    assert sentence(write(bases + "import os\nsteps = 4\n")) == (
        "run.py:3: unknown key 'steps' at the top level; known are custom_imports, data_args, distill_args, "
        "export_args, hardware, model_args, name, objectives, privacy_args, tiny, "
        "training_args (helper variables begin with '_')"
    )
    assert sentence(write(bases + "text = 'a'\n")).startswith("run.py:2: unknown key 'text' at the top level")


def test_values_without_source_text(write, bases):
    assert sentence(write(bases + "model_args = dict(lora_target=print)\n")) == (
        "run.py:2: model_args.lora_target is a builtin_function_or_method; a config holds only None, True, False, "
        "numbers, text, lists, tuples and dicts"
    )


RESOLVED = """
model_args = dict(lora_r=8, lora_target=r"layers\\.\\d+\\.q_proj", system='He said "no";\\n{x}', turn_end=None)
data_args = dict(
    train=dict(tasks=("modality",), modalities=["CT"] * 40),
    validation=dict(type="Joined", datasets=[dict(type="Rows", filename="a.jsonl", transforms=[dict(type="Flip")])]),
)
training_args = dict(learning_rate=1e-7, lr_scheduler_kwargs={"min lr": float("inf"), "class": 1}, warmup_steps=0.03)
hardware = dict(bf16=True)
export_args = dict(merged=True)
"""


def test_the_written_text_is_read_as_an_equal_config(write, bases, tmp_path):
    config = read_config(write(bases + RESOLVED), ["training_args.max_steps=3"])
    text = config.text
    assert text.splitlines()[0] == "# Resolved from run.py"
    assert text.splitlines()[1].startswith("# git commit: ")
    assert text.splitlines()[2].startswith("# versions: torch 2") and "transformers 5" in text.splitlines()[2]
    again = read_config(write(text, "exp/run/20260101_000000/config.py"))
    assert again == config
    assert again.name == "run"
    assert again.text.splitlines()[1:] == text.splitlines()[1:]
    assert again.data_args.validation["datasets"][0]["data_path"] == "a.jsonl"


def test_a_run_with_a_resolved_config_as_base_has_another_name(write, bases):
    write(read_config(write(bases)).text, "config.py")
    assert read_config(write('_base_ = "config.py"\n', "child.py")).name == "child"
    assert read_config("config.py").name == "run"


def test_the_text_follows_replaced_values(write, bases):
    config = read_config(write(bases))
    other = config.replaced(**{"model_args.lora_r": 4, "data_args.train.size": 2, "tiny": True})
    assert (other.model_args.lora_r, other.data_args.train["size"], other.tiny) == (4, 2, True)
    assert (config.model_args.lora_r, config.data_args.train["size"], config.tiny) == (16, 8, False)
    assert other != config
    assert read_config(write(other.text, "config.py")) == other


DATASET = """
from mllm.registry import DATASETS

@DATASETS.register_module()
class OutsideDataset:
    def __init__(self, data_path):
        self.data_path = data_path
"""


@pytest.fixture
def clean_imports(monkeypatch):
    from mllm.registry import DATASETS

    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("outside_dataset", "broken_dataset"):
        sys.modules.pop(name, None)
    DATASETS.module_dict.pop("OutsideDataset", None)


def test_custom_imports_from_the_folder_of_the_config(write, bases, clean_imports, tmp_path, monkeypatch):
    write(DATASET, "mine/outside_dataset.py")
    text = (
        '_base_ = ["../model.py", "../runtime.py"]\ncustom_imports = dict(imports=["outside_dataset"])\n'
        'data_args = dict(train=dict(type="OutsideDataset", data_path="a.json"))\n'
    )
    config = read_config(write(text, "mine/run.py"))
    assert config.data_args.train == {"type": "OutsideDataset", "data_path": "a.json"}
    assert config.custom_imports == {"imports": ["outside_dataset"], "folders": [str(tmp_path / "mine")]}
    assert read_config(write(config.text, "config.py")) == config


def test_custom_imports_that_fail(write, bases, clean_imports, tmp_path):
    path = write(bases + 'custom_imports = dict(imports=["no_such_module"])\n')
    assert sentence(path) == (
        f"run.py:2: custom_imports finds no module 'no_such_module' in {tmp_path} or on PYTHONPATH"
    )
    write("\nx = undefined\n", "broken_dataset.py")
    path = write(bases + 'custom_imports = dict(imports="broken_dataset")\n')
    assert sentence(path) == "broken_dataset.py:2: NameError: name 'undefined' is not defined"
    path = write(bases + 'custom_imports = dict(modules="broken_dataset")\n')
    assert sentence(path) == (
        "run.py:2: unknown key 'modules' in custom_imports; known are allow_failed_imports, folders, imports"
    )


def test_reading_a_config_imports_no_model_code():
    code = "import sys, mllm.config.reading; print('transformers' in sys.modules or 'torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert printed.stdout.strip() == "False"


def test_the_checkout_is_found():
    assert (CHECKOUT / "config" / "training_configs").is_dir() and isinstance(CHECKOUT, Path)


def test_a_mistyped_config_name_lists_similar_files(write, bases, tmp_path):
    write(bases, "thyroid_nodules.py")
    message = sentence(tmp_path / "thyroid_nodule.py")
    assert message.endswith(f"not found: did you mean {display_path(tmp_path / 'thyroid_nodules.py')}?")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("learning_rate", "training_args.learning_rate"),
        ("lora_r", "model_args.lora_r"),
        ("compute_metric", "data_args.compute_metric"),
        ("merged", "export_args.merged"),
    ],
)
def test_a_key_of_a_section_at_the_top_level_names_its_section(write, bases, key, place):
    expected = f"unknown key '{key}' at the top level: did you mean {place}? (helper variables begin with '_')"
    assert sentence(write(bases + f"{key} = 1\n")) == f"run.py:2: {expected}"
    assert sentence(write(bases), f"{key}=1") == f"--cfg-options: {expected}"


@pytest.mark.parametrize("text", ["training_args.max_steps:3", "training_args.max_steps: 3"])
def test_a_colon_in_an_override_is_explained(write, bases, text):
    assert sentence(write(bases), text) == (
        f"--cfg-options: '{text}' must have the form key.key=value: did you mean training_args.max_steps=3?"
    )
    text = "training_args:max_steps=3"
    assert sentence(write(bases), text).endswith("has a colon in its key: did you mean training_args.max_steps=3?")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("batch_size = 2", "it is a key of training_args: did you mean 'per_device_train_batch_size'?"),
        ("data_args = dict(val=None)", "unknown key 'val' in data_args: did you mean 'validation'?"),
        ("model_args = dict(r=4)", "unknown key 'r' in model_args: did you mean 'lora_r'?"),
        ("_bases_ = []", "unknown key '_bases_' at the top level: did you mean '_base_'?"),
    ],
)
def test_names_of_other_trainers_and_a_mistyped_base_name_their_keys(write, bases, text, end):
    assert sentence(write(bases + text + "\n")).removesuffix(" (helper variables begin with '_')").endswith(end)


def test_a_dict_in_an_override_replaces_none(write, bases):
    path = write(bases + "data_args = dict(test=None)\n")
    assert read_config(path, ["data_args.test={'type': 'DummyDataset', 'size': 3}"]).data_args.test["size"] == 3
