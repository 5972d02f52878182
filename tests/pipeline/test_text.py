"""Text runs of `finetune.py`: equal with and without packing, on real questions, and on translations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllm.errors import ConfigError
from mllm.pipeline.export import main as export
from mllm.pipeline.finetune import main
from mllm.pipeline.merge import main as merge
from mllm.pipeline.predict import main as predict
from mllm.tiny.checkpoints import write_tiny

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = """
_base_ = ["{checkout}/config/_base_/models/gemma3n_text.py", "{checkout}/config/_base_/datasets/first_aid.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(load_in_4bit=False, lora_r=4, max_length=200)
data_args = dict(train=dict(data_path="train.jsonl"),
                 validation=dict(_delete_=True, type="TextQADataset", data_path="validation.jsonl"))
training_args = dict(max_steps=3, per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=1e-3,
                     lr_scheduler_type="constant", warmup_steps=0, eval_strategy="steps", eval_steps=1, optim="sgd",
                     save_strategy="steps", save_steps=1, save_total_limit=None, dataloader_num_workers=0,
                     gradient_checkpointing=True)
{more}
"""


@pytest.fixture
def shallow(folder: Path) -> None:
    """Gemma 3n with four layers as the checkpoint of `--tiny`, which has 21, because llama.cpp requires them."""
    write_tiny("gemma3n", folder / "ckpt" / "tiny-gemma3n-deep")


def write_run(name: str, more: str = "") -> str:
    """Write sixteen questions of different lengths, four others, and a config."""
    Path(f"{name}.py").write_text(TEXT.format(checkout=CHECKOUT, more=more))
    for split, numbers in (("train", range(16)), ("validation", range(16, 20))):
        rows = [
            {"question": f"What is {n}? " * (1 + n % 5), "answer": f"It is {n} and no more. " * (1 + n % 3)}
            for n in numbers
        ]
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{name}.py"


def log_of(run: str, key: str) -> list[float]:
    rows = json.loads((Path("exp") / run / "latest" / "training_log.json").read_text())["rows"]
    return [row[key] for row in rows if key in row]


def adapter_of(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path("exp") / run / "latest" / "adapter" / "adapter_model.safetensors")


def test_a_packed_run_makes_the_same_updates_with_less_padding(folder, shallow):
    assert main([write_run("plain"), "--tiny"]) == 0
    assert main([write_run("packed", "data_args.update(packing=True)"), "--tiny"]) == 0
    for key, rel in (("loss", 1e-4), ("eval_loss", 1e-4), ("grad_norm", 1e-3)):  # with the head's rounding
        assert log_of("packed", key) == pytest.approx(log_of("plain", key), rel=rel), key
    plain, packed = adapter_of("plain"), adapter_of("packed")
    for name, tensor in plain.items():
        torch.testing.assert_close(packed[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert any(tensor.any() for name, tensor in plain.items() if "lora_B" in name)
    assert max(log_of("packed", "padding_share")) < min(log_of("plain", "padding_share"))


def test_training_on_real_questions_lowers_the_loss_on_others(folder, shallow, shared_data, capsys):
    """Labeled questions of PubMedQA: the loss of held-out answers falls, and decisions are parsed exactly."""
    source = shared_data / "text" / "pubmedqa_ori_pqal.json"
    if not source.is_file():
        pytest.skip("PubMedQA's labeled questions are not beside this checkout")
    rows = list(json.loads(source.read_text()).values())
    splits = {"train": (rows[:64], "LONG_ANSWER"), "validation": (rows[108:120], "LONG_ANSWER")}
    splits["test"] = (rows[120:132], "final_decision")
    for split, (chosen, answer) in splits.items():
        lines = [json.dumps({"question": row["QUESTION"], "answer": row[answer]}) for row in chosen]
        Path(f"{split}.jsonl").write_text("\n".join(lines))
    more = """data_args.update(test=dict(_delete_=True, type="TextQADataset", data_path="test.jsonl"),
                 compute_metric="choice", gen_kwargs=dict(max_new_tokens=4, batch_size=12))
training_args.update(max_steps=16, eval_steps=16, eval_on_start=True, optim="adamw_torch", learning_rate=3e-2,
                     per_device_train_batch_size=4, per_device_eval_batch_size=12, save_strategy="no")"""
    Path("real.py").write_text(TEXT.format(checkout=CHECKOUT, more=more))
    assert main(["real.py", "--tiny"]) == 0
    before, after = log_of("real", "eval_loss")
    assert after < before - 0.4
    predictions = [json.loads(line) for line in Path("exp/real/latest/predictions.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in predictions] == [row["final_decision"] for row in rows[120:132]]
    assert "choice/majority" in capsys.readouterr().out + Path("exp/real/latest/adapter/README.md").read_text()


TRANSLATION = """
_base_ = ["{checkout}/config/_base_/models/t5gemma.py", "{checkout}/config/_base_/datasets/mtnt_en_fr.py",
          "{checkout}/config/_base_/runtime/finetune.py"]
model_args = dict(lora_r=8)
data_args = dict(train=dict(data_path="pairs.tsv"), validation=dict(data_path="pairs.tsv"),
                 test=dict(_delete_=True, type="TranslationDataset", data_path="pairs.tsv"),
                 compute_metric="accuracy", gen_kwargs=dict(max_new_tokens=20))
training_args = dict(per_device_train_batch_size=4, learning_rate=1e-2, lr_scheduler_type="constant",
                     warmup_steps=0, eval_strategy="steps", eval_steps=40, eval_on_start=True, save_strategy="no",
                     logging_steps=40, dataloader_num_workers=0, per_device_eval_batch_size=4, report_to=[])
"""


def test_a_memorized_translation_is_merged_and_predicted(folder, capsys):
    """All commands on an adapter of T5Gemma, including GGUF, which is refused with a reason."""
    pairs = [("The heart.", "Le coeur."), ("The liver.", "Le foie."), ("No lung.", "Nul poumon."), ("Two.", "Deux.")]
    Path("pairs.tsv").write_text("".join(f"{n}\t{src}\t{dst}\n" for n, (src, dst) in enumerate(pairs)))
    Path("translate.py").write_text(TRANSLATION.format(checkout=CHECKOUT))
    assert main(["translate.py", "--tiny", "--cfg-options", "training_args.max_steps=80"]) == 0
    losses = log_of("translate", "eval_loss")
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.1 * losses[0]
    run = Path("exp/translate/latest")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [dst for _, dst in pairs]
    assert all(row["tokens"] < 20 for row in rows), "the end of the turn is generated"
    assert merge(["--adapter", str(run / "adapter"), "--out", "merged"]) == 0
    assert json.loads(Path("merged/export_report.json").read_text())["parity"] == "checked"
    for source in (["--adapter", str(run / "adapter")], ["--model", "merged"]):
        capsys.readouterr()
        assert predict([*source, "--question", "The liver."]) == 0
        assert capsys.readouterr().out == "Le foie.\n"
    pytest.importorskip("gguf")
    with pytest.raises(ConfigError, match="'merged' cannot become a GGUF: llama.cpp has no T5Gemma"):
        export(["--model", "merged", "--format", "gguf", "--out", "model.gguf", "--type", "q8_0"])
    assert not Path("model.gguf").exists()
