"""Probabilities of options against those of transformers, token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mllm.config.defaults import make_model_args
from mllm.config.hardware import Hardware
from mllm.engine.evaluation import evaluate_split
from mllm.engine.feature_computer import FeatureComputer
from mllm.engine.option_scores import candidates_of, score_sample
from mllm.errors import ConfigError, DataError
from mllm.metrics.classification import Accuracy
from mllm.metrics.rankings import AUROC
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.image_features import POOLED
from mllm.structures import Sample, Turn

CHOICES = ["yes", "no", "left lung"]
CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)


def log_likelihood(bundle, sample, text):
    """Return the log-likelihood of a text behind the prompt, from the logits of the model of transformers."""
    prompt = bundle.encoder.prompt(sample).student["input_ids"]
    encoded = bundle.encoder.encode(Sample([*sample.turns[:-1], Turn("assistant", text)], sample.images))
    with torch.no_grad():
        logits = bundle.model.pretrained(**bundle.encoder.pad([encoded]).student).logits[0].double()
    tokens = encoded.student["input_ids"]
    positions = range(len(prompt), len(tokens))
    return sum(logits[i - 1].log_softmax(0)[tokens[i]].item() for i in positions)


def test_probabilities_are_the_softmax_of_the_likelihoods(make_bundle, rows):
    bundle = make_bundle()
    bundle.model.eval()
    samples = [rows(3).sample(index) for index in range(3)]
    answers = [score_sample(bundle, sample, CHOICES, batch_size=2) for sample in samples]
    for sample, answer in zip(samples, answers, strict=True):
        expected = torch.tensor([log_likelihood(bundle, sample, text) for text in CHOICES]).softmax(0)
        assert list(answer.scores) == CHOICES
        assert list(answer.scores.values()) == pytest.approx(expected.tolist(), abs=1e-4)
        assert answer.text == CHOICES[int(expected.argmax())]
    whole = score_sample(bundle, samples[0], CHOICES, batch_size=8)
    assert list(whole.scores.values()) == pytest.approx(list(answers[0].scores.values()), abs=1e-5)


def test_weights_in_bf16_between_trained_ones_in_fp32_are_scored(tiny_medgemma):
    trainable = {"language": {"last_layers": 1}}
    args = make_model_args("medgemma", model_name_or_path=str(tiny_medgemma), trainable=trainable)
    sample = Sample([Turn("user", "Clear?"), Turn("assistant", "yes")])
    exact, rounded = (
        score_sample(load_pretrained(args, hardware), sample, CHOICES).scores
        for hardware in (CPU, replace(CPU, precision="bf16"))
    )
    assert list(rounded.values()) == pytest.approx(list(exact.values()), abs=0.05)


def test_likelihoods_that_are_nan_are_refused(make_bundle):
    bundle = make_bundle()
    with torch.no_grad():
        bundle.model.pretrained.get_output_embeddings().weight.fill_(float("nan"))
    sample = Sample([Turn("user", "Clear?"), Turn("assistant", "yes")])
    with pytest.raises(ConfigError, match="the likelihoods of the options are not finite: .* another precision"):
        score_sample(bundle, sample, CHOICES)


def test_letters_of_a_question_are_scored(make_bundle):
    sample = Sample([Turn("user", "Which? A: normal B: edema C: normal"), Turn("assistant", "B")])
    assert candidates_of(sample) == {"A": "normal", "B": "edema", "C": "normal"}
    answer = score_sample(make_bundle(), sample)
    assert answer.text in {"A", "B", "C"} and set(answer.scores) == {"normal", "edema"}
    assert sum(answer.scores.values()) == pytest.approx(1)


def test_rows_have_scores_and_questions_without_options_are_refused(make_bundle, rows):
    class Asked(rows):
        def sample(self, index, epoch=0):
            return Sample([Turn("user", "Clear?"), Turn("assistant", "yes" if index else "no")], source=f"row {index}")

    metrics = {"accuracy": Accuracy, "auroc": AUROC}
    scored = dict(scoring="options", progress=False)
    evaluation = evaluate_split(make_bundle(), Asked(3), metrics, choices=["yes", "no"], **scored)
    assert set(evaluation.figures["auroc"]) >= {"auroc", "auroc_ci_low", "samples"}
    assert all(set(row["scores"]) == {"yes", "no"} and row["prediction"] in row["scores"] for row in evaluation.rows)
    with pytest.raises(DataError, match="lists no options such as .* set data_args.gen_kwargs.choices"):
        evaluate_split(make_bundle(), Asked(3), metrics, **scored)
    with pytest.raises(ConfigError, match="scoring must be 'generation' or 'options', not 'letters'"):
        evaluate_split(make_bundle(), Asked(3), metrics, scoring="letters")


def test_the_vision_tower_runs_once_for_all_options_of_a_question(make_bundle, rows):
    """The first question is computed from pixels, too, which is the check of the features."""
    bundle = make_bundle()
    computer = FeatureComputer(bundle)
    calls = []
    tower = bundle.model.pretrained.get_submodule(bundle.model.towers["vision"])
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    samples = [rows(6).sample(index) for index in (0, 1, 2, 4)]  # the third one has no image
    counts, scores = [], []
    for shared in (None, computer):
        for sample in samples:
            calls.clear()
            scores.append(list(score_sample(bundle, sample, CHOICES, 2, shared).scores.values()))
            counts.append(len(calls))
    handle.remove()
    assert counts == [2, 2, 0, 2] + [3, 1, 0, 1]
    for alone, together in zip(scores[:4], scores[4:], strict=True):
        assert together == pytest.approx(alone, abs=1e-5)
    other = score_sample(bundle, replace(samples[0], images=samples[1].images), CHOICES, 2, computer).scores
    assert list(other.values()) != pytest.approx(scores[0], abs=1e-6), "the features of a former question are not used"


def test_features_that_the_model_reads_otherwise_are_not_shared(make_bundle, rows, monkeypatch):
    bundle = make_bundle()
    sample, computer = rows(1).sample(0), FeatureComputer(bundle)
    expected = score_sample(bundle, sample, CHOICES, 3).scores
    monkeypatch.setattr(
        "mllm.models.encoding.image_features.named_features",
        lambda outputs: {POOLED: outputs.pooler_output + 1},
    )
    assert score_sample(bundle, sample, CHOICES, 3, computer).scores == expected
    assert computer.is_refused
