"""Evaluations of questions that share images have the predictions of evaluations of each question alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.config.rules.sharing import ANSWERED
from mllm.dataset.builder import build_dataset
from mllm.models.builder.builder import load_pretrained
from mllm.models.generation.shared_prompts import SharedPrompts
from mllm.pipeline.evaluate_model import main
from mllm.pipeline.predict import main as predict
from mllm.predict.shared_images import question_groups, share_test_images, sharing_restored
from mllm.run.prepare import prepare_args

QUESTIONS = ("Why?", "Is there an effusion?", "What is seen in the left lung? A: a mass B: a nodule")
TEST = """
data_args = dict(
    test=dict(_delete_=True, type="VQADataset", data_path="rows.jsonl", image_folder="pictures"),
    gen_kwargs=dict(max_new_tokens=4, do_sample=True, temperature=20.0, batch_size=2),
)
"""


@pytest.fixture
def config(write_config, write_rows) -> str:
    """A config whose test split has four images with one question and then with three, and two images with two."""
    more = [{"image": f"{image}.png", "question": text, "answer": "no"} for text in QUESTIONS for image in range(4)]
    more += [{"image": ["0.png", "1.png"], "question": text, "answer": "no"} for text in QUESTIONS[:2]]
    write_rows(*[{**row, "patient": "a"} for row in more])
    return write_config(TEST)


def rows(config: str, model: Path, name: str, *overrides: str) -> list[dict]:
    """Return the predictions of an evaluation."""
    options = ["--cfg-options", *overrides] if overrides else []
    assert main([config, "--model", str(model), "--metric", "accuracy", "--out", name, *options]) == 0
    return [json.loads(line) for line in (Path(name) / "predictions.jsonl").read_text().splitlines()]


def test_predictions_are_equal_with_and_without_sharing(config, tiny_medgemma, caplog):
    caplog.set_level("INFO")
    plain = rows(config, tiny_medgemma, "plain", "data_args.gen_kwargs.share_images=False")
    assert "data_args.gen_kwargs.share_images is False" in caplog.text and len(plain) == 18
    assert len({row["prediction"] for row in plain}) > 12
    assert rows(config, tiny_medgemma, "shared") == plain
    assert "18 of 18 questions share their images with another question; the tokens of these 5 images" in caplog.text


def test_several_scales_and_scored_options_are_equal_with_and_without_sharing(config, tiny_medgemma):
    options = ["data_args.gen_kwargs.scales=[56,112]", "data_args.gen_kwargs.scoring=options"]
    options += ["data_args.gen_kwargs.choices=[yes,no]"]
    shared = rows(config, tiny_medgemma, "shared", *options)
    off = ["data_args.gen_kwargs.share_images=False", "data_args.vision_cache=False"]
    plain = rows(config, tiny_medgemma, "plain", *options, *off)
    for row, other in zip(shared, plain, strict=True):
        assert row.pop("scores") == pytest.approx(other.pop("scores"), abs=1e-6)
        assert row == other


def test_the_rows_of_a_file_share_images(config, tiny_llava, monkeypatch):
    rows_of_images = []
    original = SharedPrompts.__init__

    def counted(self, bundle, prompts):
        rows_of_images.append(len(prompts))
        original(self, bundle, prompts)

    def answers(out: str) -> list[dict]:
        options = ["--temperature", "20", "--max-new-tokens", "4", "--image-folder", "pictures", "--out", out]
        assert predict(["--model", str(tiny_llava), "--type", "image-text", "--batch", "rows.jsonl", *options]) == 0
        return [json.loads(line) for line in Path(out).read_text().splitlines()]

    monkeypatch.setattr(SharedPrompts, "__init__", counted)
    shared = answers("shared.jsonl")
    assert sum(rows_of_images) == 18
    monkeypatch.setattr("mllm.predict.loaded_model.share_images", lambda bundle: None)
    assert answers("plain.jsonl") == shared and sum(rows_of_images) == 18
    assert len({row["prediction"] for row in shared}) > 12


def test_questions_are_grouped_by_their_images_and_by_scale(config):
    class Source:
        shares_images = True

    split = build_dataset(dict(type="VQADataset", data_path="rows.jsonl", image_folder="pictures"), seed=0)
    once = [*list(range(4)) * 4, 4, 4]
    assert question_groups(Source(), split).tolist() == once
    assert question_groups(Source(), split, repeats=2).tolist() == [*once, *(5 + group for group in once)]
    Source.shares_images = False
    assert question_groups(Source(), split) is None


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("data_args['gen_kwargs'] = dict(share_images=False)", "data_args.gen_kwargs.share_images is False"),
        ("model_args['attn_implementation'] = 'eager'", "the attention of the model is 'eager', not 'sdpa'"),
        ("model_args['heads'] = dict(box=dict(type='BoxHead', hidden=8))", "heads read the states of the image"),
        ("", None),
    ],
)
def test_the_reason_is_logged_if_images_are_not_shared(write_config, tiny_medgemma, caplog, more, reason):
    caplog.set_level("INFO")
    config, hardware = prepare_args(write_config(f"model_args['model_name_or_path'] = '{tiny_medgemma}'\n{more}"))
    bundle = load_pretrained(config.model_args, hardware)
    with sharing_restored(bundle):
        share_test_images(config, bundle)
        assert bundle.model.shares_tokens == bundle.encoder.shares_images == (reason is None)
    assert not bundle.encoder.shares_images
    assert (f"because {reason}" in caplog.text) if reason else ("because" not in caplog.text)


def test_untested_architectures_share_nothing(write_config, tiny_qwen2_vl, caplog):
    caplog.set_level("INFO")
    text = f"model_args = dict(_delete_=True, type='image-text', model_name_or_path='{tiny_qwen2_vl}', max_length=256)"
    config, hardware = prepare_args(write_config(text))
    bundle = load_pretrained(config.model_args, hardware)
    share_test_images(config, bundle)
    assert "not been tested with 'qwen2_vl' models" in caplog.text and "qwen2_vl" not in ANSWERED
    assert not bundle.model.shares_tokens
