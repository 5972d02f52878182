"""Every shipped config can be read, makes sense on the machine that it is for, and is as short as it should be."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from mllm.config.hardware import CHECKOUT, Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.dataset.builder import build_dataset
from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.models.builder.builder import load_encoder
from mllm.pipeline.evaluate_model import main as evaluate
from mllm.pipeline.finetune import main
from mllm.report.compare import compare
from mllm.run_files import TRAINED, UNTRAINED
from mllm.structures import IGNORE
from mllm.tiny.checkpoints import write_tiny

CONFIGS = sorted((CHECKOUT / "config" / "training_configs").glob("*.py"))
CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)
GTX = Hardware("cuda", "NVIDIA GeForce GTX 1650", (7, 5), 4 << 30, 1, 16 << 30, 4)
T4 = Hardware("cuda", "Tesla T4", (7, 5), 15 << 30, 1, 32 << 30, 4)
A10 = Hardware("cuda", "NVIDIA A10G", (8, 6), 24 << 30, 1, 32 << 30, 4)

MEANT_FOR = {
    "medgemma_4gb_test": (GTX, "fp16"),
    "medgemma_16gb_medical": (T4, "fp16"),
    "medgemma_16gb_ampere": (A10, "bf16"),
    "medgemma_cpu_demo": (CPU, "fp32"),
    "medgemma_lesion_boxes": (A10, "bf16"),
    "shikra_tinyllama": (A10, "bf16"),
    "shikra_vicuna7b_rec": (A10, "bf16"),
    "perceptionGPT_refcoco": (A10, "bf16"),
    "gemma3n_medrescue": (A10, "bf16"),
    "gemma3n_medrescue_t4": (T4, "fp16"),
    "t5gemma_mtnt_en_fr": (A10, "bf16"),
    "gemma3n_3ncore_kd": (A10, "bf16"),
    "gemma3n_3ncore_kd_t4": (T4, "fp32"),
    "vaultgemma_dp": (A10, "bf16"),
    "medgemma_dp_reports": (A10, "bf16"),
    "medgemma_flare25": (A10, "bf16"),
    "medgemma_cxr_report": (A10, "bf16"),
    "medgemma_chexpert": (A10, "bf16"),
    "medgemma_vqa_rad": (A10, "bf16"),
    "medgemma_segmentation": (A10, "bf16"),
    "medgemma_detection": (A10, "bf16"),
    "medgemma15_ct_slices": (A10, "bf16"),
    "gemma4_vqa_rad": (A10, "bf16"),
    "qwen3_vl_vqa_rad": (A10, "bf16"),
    "paligemma2_vqa_rad": (A10, "bf16"),
    "internvl3_vqa_rad": (A10, "bf16"),
    "smolvlm_from_scratch": (A10, "bf16"),
}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs of all configs, which share the tiny checkpoints in it.

    Gemma 3n has four layers in place of the 21 of `--tiny`, which llama.cpp requires; no config writes its file. Images
    of MedGemma have 448 pixels in place of 896, which teachers without `image_size` would read.
    """
    folder = tmp_path_factory.mktemp("runs")
    write_tiny("medgemma", folder / "ckpt" / "tiny-medgemma", vision={"image_size": 448})
    write_tiny("gemma3n", folder / "ckpt" / "tiny-gemma3n-deep")
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_passes_the_rules_on_its_hardware(path: Path):
    hardware, precision = MEANT_FOR[path.stem]
    config, adapted = apply_rules(read_config(path), hardware)
    assert adapted.precision == precision
    assert not config.training_args.get("fp16"), "plain fp16 must never reach the trainer"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_passes_the_rules_on_a_cpu(path: Path):
    config, adapted = apply_rules(read_config(path), CPU)
    assert adapted.precision == "fp32"
    assert config.training_args["dataloader_pin_memory"] is False


def test_only_the_configs_for_ampere_need_an_ampere_gpu():
    for path in CONFIGS:
        if MEANT_FOR[path.stem][0] is A10:
            with pytest.raises(ConfigError, match="Tesla T4 has compute capability 7.5"):
                apply_rules(read_config(path), T4)
        else:
            apply_rules(read_config(path), T4)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_short_and_states_its_cost(path: Path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = (ast.get_docstring(tree) or "").splitlines()
    assert len(text.splitlines()) < 40
    assert any(line.startswith("Cost: ") for line in lines)
    assert f"Command: python mllm/pipeline/finetune.py config/training_configs/{path.name}" in lines
    assert all(isinstance(node, (ast.Expr, ast.Assign)) for node in tree.body), "a config has no logic"
    bases = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "_base_")
    assert len(bases.elts) == 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_text_of_a_config_is_read_as_an_equal_config(path: Path, tmp_path: Path):
    config = read_config(path)
    (tmp_path / "config.py").write_text(config.text, encoding="utf-8")
    assert read_config(tmp_path / "config.py") == config


@pytest.mark.parametrize("name", ["flare25", "cxr_report", "chexpert", "vqa_rad", "segmentation", "detection"])
def test_the_medical_configs_end_with_predictions(name: str):
    config = read_config(CHECKOUT / "config" / "training_configs" / f"medgemma_{name}.py")
    assert config.data_args.test is not None and config.data_args.compute_metric


def test_the_tiers_have_the_settings_of_the_guide():
    read = {path.stem: read_config(path) for path in CONFIGS}
    small, medium, large = (read[f"medgemma_{name}"] for name in ("4gb_test", "16gb_medical", "16gb_ampere"))
    args = small.model_args
    assert (args.load_in_4bit, args.lora_r, args.image_token_len, args.max_length) == (True, 16, 128, 512)
    assert small.training_args["max_steps"] == 3 and small.training_args["gradient_checkpointing"]
    args = medium.model_args
    assert (args.load_in_8bit, args.lora_r, args.image_token_len, args.max_length) == (True, 64, 256, 2048)
    assert medium.training_args["per_device_train_batch_size"] == 4
    assert not medium.training_args["bf16"] and not medium.training_args["tf32"]
    args = large.model_args
    assert (args.lora_r, args.image_size, args.load_in_4bit, args.load_in_8bit) == (128, 896, False, False)
    assert large.training_args["bf16"] and large.training_args["tf32"]
    assert large.training_args["per_device_train_batch_size"] == 16
    assert {config.model_args.model_name_or_path for config in (small, medium, large)} == {"ckpt/medgemma-4b-it"}


@pytest.mark.parametrize("name", ["gemma3n_medrescue", "gemma3n_medrescue_t4"])
def test_medrescue_has_the_settings_of_its_training(name: str):
    config = read_config(CHECKOUT / "config" / "training_configs" / f"{name}.py")
    model, training = vars(config.model_args), config.training_args
    expected = dict(type="causal-lm", model_name_or_path="google/gemma-3n-E4B-it", load_in_4bit=True, lora_r=8)
    expected |= dict(lora_alpha=8, lora_dropout=0.0, lora_target="language", max_length=1024)
    assert {key: model[key] for key in expected} == expected
    expected = dict(per_device_train_batch_size=4, gradient_accumulation_steps=4, learning_rate=2e-5, warmup_steps=5)
    expected |= dict(lr_scheduler_type="linear", optim="adamw_8bit", weight_decay=0.01, num_train_epochs=1)
    expected |= dict(save_strategy="steps", save_steps=500, seed=3407)
    assert {key: training[key] for key in expected} == expected


def test_t5gemma_translates_as_in_its_notebook():
    config = read_config(CHECKOUT / "config" / "training_configs" / "t5gemma_mtnt_en_fr.py")
    model, training = config.model_args, config.training_args
    assert (model.type, model.model_name_or_path) == ("seq2seq", "google/t5gemma-b-b-prefixlm-it")
    assert model.max_length == 200
    expected = dict(per_device_train_batch_size=8, gradient_accumulation_steps=1, learning_rate=1e-4, max_steps=500)
    expected |= dict(optim="adafactor", lr_scheduler_type="constant", seed=42)
    assert {key: training[key] for key in expected} == expected


def test_vaultgemma_has_the_prompt_of_its_notebook_and_supervises_only_the_response(tmp_path: Path):
    config = read_config(CHECKOUT / "config" / "training_configs" / "vaultgemma_dp.py")
    checkpoint = write_tiny("vaultgemma", tmp_path / "vaultgemma")
    encoder = load_encoder(replace(config.model_args, model_name_or_path=str(checkpoint)))
    (tmp_path / "rows.csv").write_text(
        "instruction,input,output\nAnswer this question truthfully,What is a meninx?,A membrane around the brain.\n"
    )
    columns = {key: config.data_args.train[key] for key in ("question", "answer")}
    sample = build_dataset({"type": "TextQADataset", "data_path": str(tmp_path / "rows.csv"), **columns}).sample(0)
    question = "Instruction:\nAnswer this question truthfully.\n\nQuestion:\nWhat is a meninx?\n\nResponse:\n"
    encoded, prompt_ids = encoder.encode(sample), encoder.prompt(sample).student["input_ids"]
    ids, labels = encoded.student["input_ids"], encoded.targets["labels"]
    assert encoder.tokenizer.decode(ids) == f"<bos>{question}A membrane around the brain.<eos>"
    assert encoder.tokenizer.decode(labels[labels != IGNORE]) == "A membrane around the brain.<eos>"
    assert encoder.tokenizer.decode(prompt_ids) == f"<bos>{question}" and (ids[: len(prompt_ids)] == prompt_ids).all()
    args, privacy = config.model_args, config.privacy_args
    assert (args.load_in_4bit, args.lora_r, args.lora_alpha, args.lora_target) == (True, 8, 16, "language")
    assert (privacy.target_epsilon, privacy.target_delta, privacy.clip_norm) == (3.0, 1e-5, 1.0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_two_steps_with_tiny_and_peft_loads_the_adapter(path: Path, workplace: Path, monkeypatch):
    monkeypatch.chdir(workplace)
    config = read_config(path)
    splits = {split: vars(config.data_args)[split] for split in ("train", "validation", "test")}
    sizes = [f"data_args.{split}.size=2" for split, options in splits.items() if options and "size" in options]
    if config.training_args["gradient_accumulation_steps"] > 1:
        sizes += ["training_args.gradient_accumulation_steps=1"]
    if splits["test"]:
        sizes += ["data_args.gen_kwargs.max_new_tokens=4"]
    if config.model_args.image_size in (448, 896):
        sizes += ["model_args.image_size=224"]
    if "mask" in config.model_args.heads:
        sizes += ["model_args.heads.mask.dim=32"]
    if path.stem != "gemma3n_3ncore_kd":  # one config is enough for loading in other processes
        sizes += ["training_args.dataloader_num_workers=0"]
    if config.privacy_args:
        sizes += ["training_args.per_device_train_batch_size=4", "privacy_args.physical_batch_size=2"]
        sizes += ["model_args.max_length=192"]
        sizes += ["privacy_args.test_noise_seed=1"]  # else a draw of eight patients is empty once in 256 times
    assert (
        main(
            [str(path), "--tiny", "--cfg-options", "training_args.max_steps=2", "training_args.logging_steps=1", *sizes]
        )
        == 0
    )
    run = workplace / "exp" / path.stem / "latest"
    rows = json.loads((run / "training_log.json").read_text())["rows"]
    assert [row["step"] for row in rows if "loss" in row][-1] == 2
    if path.stem == "medgemma_flare25":
        check_the_answers_for_the_challenge(path, run)
    if config.data_args.compute_untrained:
        check_the_evaluation_before_training(run)
    kinds = {"causal-lm": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
    kind = kinds.get(config.model_args.type, AutoModelForImageTextToText)
    family = FAMILIES.find(config.model_args.type).tiny_name(config.model_args.model_name_or_path)
    base = kind.from_pretrained(workplace / "ckpt" / f"tiny-{family}")
    if config.model_args.trainable == "full":
        names = [name for name, _ in base.named_parameters()]
        parts = ("language_model.", "text_model.", "lm_head.")
        language = [name for name in names if any(part in name for part in parts)]
        trained = [name for name in load_file(run / "adapter" / TRAINED) if name.startswith("language.")]
        assert len(trained) == len(language)
        return
    adapted = PeftModel.from_pretrained(base, str(run / "adapter"))
    assert any(tensor.any() for name, tensor in adapted.named_parameters() if "lora_B" in name)


def check_the_answers_for_the_challenge(path: Path, run: Path) -> None:
    """Check that training and `mllm evaluate` write all rows of the question files with a predicted answer."""
    small = ["--cfg-options", "data_args.gen_kwargs.max_new_tokens=4", "model_args.image_size=224"]
    assert evaluate([str(path), "--tiny", "--adapter", str(run / "adapter"), *small]) == 0
    files = sorted(run.parent.glob("miniature/test/organized_dataset/*/*/*/*_questions_*.json"))
    asked = [json.loads(file.read_text()) for file in files]
    questions = sorted(str(row["ImageName"]) + row["Question"] for rows in asked for row in rows)
    for folder in (run, run / "evaluation-test"):
        rows = json.loads((folder / "predictions.json").read_text())
        assert sorted(str(row["ImageName"]) + row["Question"] for row in rows) == questions and questions
        assert {tuple(row) for row in rows} == {tuple(asked[0][0])}
        predicted = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        reports = [row["prediction"].strip() for row in predicted if row["task"] == "report_generation"]
        assert [row["Answer"] for row in rows if row["TaskType"] == "Report_Generation"] == reports


def check_the_evaluation_before_training(run: Path) -> None:
    """Check the figures before the training, their differences, and that `mllm compare` computes the same ones."""
    figures = json.loads((run / "metrics.json").read_text())
    facts = json.loads((run / "facts.json").read_text())
    assert {key: facts[key] for key in figures} == figures
    comparison = compare([run / UNTRAINED, run])
    assert comparison.rows and not list(run.glob("*unfinished*"))
    for row in comparison.rows:
        values = [figures[part][row.metric][row.figure] for part in ("untrained", "figures", "differences")]
        assert values == [*row.values, values[1] - values[0]]
        limits = [figures["differences"][row.metric][row.figure + end] for end in ("_ci_low", "_ci_high")]
        assert tuple(limits) == row.difference_limits[0]
