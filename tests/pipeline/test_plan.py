"""Tests of `mllm plan`: memory, time and cost, and the planned noise, which is that of the training."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path

import pytest

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.engine.privacy.accounting import epsilon_spent
from mllm.errors import ConfigError
from mllm.models.adapters.trainable import count_trainable
from mllm.models.builder.builder import load_pretrained
from mllm.pipeline.cli import main as mllm
from mllm.pipeline.command import run_command
from mllm.pipeline.plan import main
from mllm.planning.answer import measured_rate
from mllm.tiny.checkpoints import write_tiny

RUN = """
model_args = dict(type="causal-lm", model_name_or_path="model", lora_r=2, chat_template="{% for turn in messages %}"
                  "{{ turn['role'] ~ turn['content'] ~ eos_token }}{% endfor %}")
objectives = dict(next_token=dict(type="NextToken"))
data_args = dict(train=dict(type="TextQADataset", data_path="rows.jsonl"))
training_args = dict(num_train_epochs=2, per_device_train_batch_size=8)
"""
NOTEBOOK = "privacy_args = dict(target_epsilon=15.0, target_delta=1e-5)\n"


@pytest.fixture
def plan(folder, capsys):
    """Plan 900 rows with a tiny VaultGemma, as in VaultGemma's notebook; return the first line and the rows."""
    write_tiny("vaultgemma", folder / "model")
    rows = [
        {"question": f"What is {number}?", "answer": "A number.", "patient": f"p{number // 3}"} for number in range(900)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(lines: str = NOTEBOOK, *arguments: str, command=main) -> tuple[str, list[list[str]]]:
        Path("run.py").write_text(RUN + lines)
        name = ["plan"] if command is mllm else []
        capsys.readouterr()  # DeepSpeed, if it is installed, writes a line when a test imports it
        assert command([*name, "run.py", "--privacy", *arguments]) == 0
        head, _, *table = capsys.readouterr().out.splitlines()
        return head, [line.replace(",", "").split() for line in table[: table.index("")]]

    return run


def test_the_noise_equals_that_of_the_published_notebook(plan):
    head, rows = plan(NOTEBOOK, "--epsilon", "15", "8", "3", "--draw", "8", command=mllm)
    args = ModelArgs(
        "causal-lm",
        "model",
        lora_r=2,
        chat_template="{{ messages[0].content }}{{ messages[1].content if messages[1:] }}{{ eos_token }}",
    )
    numbers = sum(tower.parameters for tower in count_trainable(load_pretrained(args, detect()).model))
    assert head == f"run: 900 samples, delta 1e-05, accountant 'prv'; LoRA with {numbers:,} trained values"
    # 900 rows in draws of 8 are 113 updates an epoch; the notebook made 225 in two, which costs the same to 3 digits.
    for row, (epsilon, sigma) in zip(rows, ((15, 0.396), (8, 0.488), (3, 0.672)), strict=True):
        row = [cell for cell in row if cell != "*"]
        assert row[:4] == [str(epsilon), "8", "0.00889", "226"]
        assert float(row[4]) == pytest.approx(sigma, rel=5e-3)
        assert float(row[5]) == pytest.approx(float(row[4]) * math.sqrt(numbers) / 8, abs=0.006)
    assert [row[0] for row in rows] == ["*", "8", "3"], "the config's own row has a star"


def test_the_default_table_contains_the_row_of_the_config(plan):
    more = "privacy_args.update(target_epsilon=2.0, accountant='rdp')\ntraining_args.update(max_steps=40)\n"
    _, rows = plan(NOTEBOOK + more)
    cells = [[cell for cell in row if cell != "*"] for row in rows]
    assert [(row[0], row[1]) for row in cells] == [(e, d) for e in ("1", "2", "3", "8") for d in ("2", "8", "32")]
    assert {row[3] for row in cells} == {"40"}
    (own,) = [row for row in rows if row[0] == "*"]
    assert own[1:3] == ["2", "8"]
    for epsilon, _, rate, steps, sigma, _ in cells:
        spent = epsilon_spent([(float(sigma), float(rate), int(steps))], 1e-5, "rdp")
        assert spent == pytest.approx(float(epsilon), rel=0.01)
    loud = {(row[0], row[1]): float(row[5]) for row in cells}
    assert loud["1", "8"] > loud["8", "8"] and loud["3", "2"] > loud["3", "32"]


def test_a_configured_noise_multiplier_has_a_row_with_its_epsilon(plan):
    lines = "privacy_args = dict(noise_multiplier=0.672, target_delta=1e-5)\n"
    _, rows = plan(lines, "--epsilon", "1", "--draw", "8")
    assert rows[-1][0] == "*" and float(rows[-1][1]) == pytest.approx(3.0, rel=0.02) and rows[-1][5] == "0.6720"


def test_units_can_be_patients_and_a_draw_is_at_most_all_units(plan):
    head, rows = plan(NOTEBOOK + "privacy_args.update(unit='patient')\n", "--epsilon", "3", "--draw", "300", "1000")
    assert "300 patients" in head
    assert [row[1:4] for row in rows] == [["300", "1", "2"]]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "run.py has no privacy_args, so there is no privacy to plan: add it"),
        (NOTEBOOK + "data_args = dict(train=None)\n", "run.py has no data_args.train, so there is no privacy to plan"),
        (NOTEBOOK.replace("1e-5", "0.01"), "target_delta=0.01 is too large for N=900 samples"),
        (NOTEBOOK + "privacy_args.update(target_epsilon=-1)\n", "target_epsilon must be greater than 0"),
    ],
)
def test_configs_without_a_valid_plan_are_refused(plan, lines, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan(lines)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epsilon", "0"], "argument --epsilon: '0' is not a number above 0"),
        (["--epsilon", "much"], "argument --epsilon: 'much' is not a number above 0"),
        (["--draw", "1.5"], "argument --draw: '1.5' is not an integer of at least 1"),
    ],
)
def test_invalid_epsilons_and_draws_are_refused(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as excinfo:
        main(["run.py", "--privacy", *arguments])
    assert excinfo.value.code == 2 and sentence in capsys.readouterr().err


BAD = {
    "an unknown card": (["--gpu", "RTX3091"], "unknown GPU 'RTX3091': did you mean 'RTX3090'"),
    "no GPU": (["--gpus", "0"], "argument --gpus: '0' is not an integer of at least 1"),
    "no price": (["--price", "cheap"], "argument --price: 'cheap' is not a number above 0"),
    "no memory": (["--memory", "much"], "argument --memory: 'much' is not a size such as 16GB"),
    "memory of 0": (["--memory", "0GB"], "argument --memory: '0GB' is not a size such as 16GB"),
    "two targets": (["--memory", "16GB", "--gpu", "T4"], "not allowed with argument"),
    "no run": (["--gpu", "T4", "--measured", "nowhere"], "--measured: nowhere/facts.json cannot be read"),
    "an unknown checkpoint": ([], "the config.json of 'model' is not on this machine"),
    "epsilons without --privacy": (["--epsilon", "3"], "--epsilon and --draw require --privacy"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(folder, capsys, case):
    arguments, message = BAD[case]
    Path("run.py").write_text(RUN)
    try:
        code = run_command(main, ["run.py", *arguments])
    except SystemExit as error:
        code = error.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and "Traceback" not in err


@pytest.fixture(scope="module")
def answered(tmp_path_factory, tiny_medgemma):
    """Plan a tiny MedGemma for a T4, and return the JSON of the plan and the text."""
    folder = tmp_path_factory.mktemp("answer")
    (folder / "run.py").write_text(f"""
model_args = dict(type="medgemma", model_name_or_path="{tiny_medgemma}", lora_r=4, max_length=128, image_size=112,
                  image_token_len=16)
objectives = dict(next_token=dict(type="NextToken"))
data_args = dict(train=dict(type="DummyDataset", size=12, image_size=112))
training_args = dict(per_device_train_batch_size=2, fp16=True)
""")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        options = ["--gpu", "T4", "--gpus", "2", "--price", "0.5", "--json", str(folder / "plan.json")]
        assert main([str(folder / "run.py"), *options]) == 0
    return json.loads((folder / "plan.json").read_text()), output.getvalue()


def test_text_and_json_of_a_plan(answered):
    plan, text = answered
    assert (plan["card"], plan["gpus"], plan["samples"], plan["tokens"], plan["rows"]) == ("T4", 2, 2, 256, 12)
    assert plan["fits"] and plan["fit"]["samples"] == 2
    assert sum(plan["components"].values()) + 4 * plan["trained_parameters"] == plan["peak"], "DDP copies gradients"
    seconds = plan["flops_per_sample"] / (0.35 * 65e12) / 2
    assert plan["seconds_per_sample"] == pytest.approx(seconds)
    assert plan["cost_per_epoch"] == pytest.approx(12 * seconds / 3600 * 0.5 * 2)
    assert "fits: 0.0 of 15.2 GB that tensors can occupy on T4" in text
    assert "an epoch of 12 samples" in text and "35% of the 65 * 10^12 a second of T4" in text


def test_what_does_not_fit_names_the_smallest_card(folder, tiny_medgemma, capsys):
    Path("run.py").write_text(f"""
model_args = dict(type="medgemma", model_name_or_path="{tiny_medgemma}", lora_r=5, max_length=128, image_size=112,
                  image_token_len=16, load_in_4bit=True)
objectives = dict(next_token=dict(type="NextToken"))
training_args = dict(per_device_train_batch_size=1, fp16=True, gradient_checkpointing=True, optim="adamw_8bit")
""")
    assert run_command(main, ["run.py", "--memory", "0.42GB", "--price", "2"]) == 2
    out, err = capsys.readouterr()
    assert "cost: unknown, because the rate is unknown: --gpu NAME" in out
    assert "does not fit" in out and "memory at the peak" in out
    assert "no change that mllm plan tries makes it fit" in err and "the smallest card that fits then is GTX1650" in err
    assert "GB with --cfg-options model_args.lora_r=4, and" in err


def test_a_measured_rate(tmp_path):
    facts = {"memory": {"planned": 1, "measured": 1, "flops_per_token": 2e9, "tokens_per_second": 500.0}}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    assert measured_rate(tmp_path).flops == 1e12
    numbers = {"flops_per_token": 2e9}
    broken = [{}, [], {**numbers, "tokens_per_second": "fast"}, {**numbers, "tokens_per_second": math.nan}]
    for memory in (*broken, {**numbers, "tokens_per_second": -1.0}, {**numbers, "tokens_per_second": None}):
        (tmp_path / "facts.json").write_text(json.dumps({"memory": memory}))
        with pytest.raises(ConfigError, match="has no plan with a speed"):
            measured_rate(tmp_path)
    for content in ("[]", "{", "3"):
        (tmp_path / "facts.json").write_text(content)
        with pytest.raises(ConfigError, match="--measured: .*facts.json (has no plan|cannot be read)"):
            measured_rate(tmp_path)
