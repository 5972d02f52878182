"""Probabilities of options that share the tokens of their question are those of options alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mllm.engine.evaluation import evaluate_split
from mllm.engine.option_scores import score_sample
from mllm.engine.shared_scores import score_sharing
from mllm.errors import DataError
from mllm.structures import Sample, Turn

CHOICES = ["yes", "no", "left lung", "right lung of the patient"]


@pytest.fixture
def bundle(make_bundle):
    bundle = make_bundle()
    bundle.encoder.shares_images = True
    bundle.model.share_tokens(image_blocks=True)
    return bundle


@pytest.fixture
def questions(rows):
    """Questions about two images, a text, and a question with options of its own."""
    first, second, text = (rows(3).sample(index) for index in range(3))
    images = [first.images, second.images, first.images, first.images, second.images]
    texts = [
        "Is it clear?",
        "Is it clear?",
        "Where is the lesion of the chest?",
        "Is it clear?",
        "Which? A: normal B: a mass",
    ]
    asked = [
        Sample([Turn("user", f"<image>{text}"), Turn("assistant", "yes")], image)
        for text, image in zip(texts, images, strict=True)
    ]
    return dict(enumerate([*asked, text], start=10))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_probabilities_are_those_of_a_sample_alone(bundle, questions, batch_size):
    expected = {number: score_sample(bundle, sample, CHOICES) for number, sample in questions.items()}
    answers = {}
    for row in score_sharing(bundle, questions, CHOICES, batch_size):
        assert not answers.keys() & row.keys()
        answers |= row
    assert answers.keys() == expected.keys()
    for number, answer in answers.items():
        assert answer.text == expected[number].text
        assert answer.scores == pytest.approx(expected[number].scores, abs=1e-6)
    assert len({tuple(answer.scores.values()) for answer in answers.values()}) == 5, "two of the samples are equal"


def test_the_tower_runs_once_for_the_questions_about_an_image(bundle, questions):
    images = []
    tower = bundle.model.pretrained.get_submodule(bundle.model.towers["vision"])
    handle = tower.register_forward_pre_hook(
        lambda _, arguments, options: images.append(len((arguments or [*options.values()])[0])), with_kwargs=True
    )
    list(score_sharing(bundle, questions, CHOICES, batch_size=16))
    handle.remove()
    assert sum(images) == 2


def test_rows_with_answers_are_left_out(bundle, questions):
    rows = list(score_sharing(bundle, questions, CHOICES, 1))
    assert len(rows) > 3
    done = {number for row in rows[1:3] for number in row}
    rest = list(score_sharing(bundle, questions, CHOICES, 1, done))
    missing = [number for row in rest for number in row if number not in done]
    assert sorted(missing) == sorted(questions.keys() - done)
    scores = {number: answer for row in rows for number, answer in row.items()}
    assert all(answer == scores[number] for row in rest for number, answer in row.items())


def test_an_option_that_does_not_fit_is_refused(bundle, questions):
    bundle.encoder.max_length = 40
    with pytest.raises(DataError, match="an option does not fit into max_length"):
        list(score_sharing(bundle, questions, ["yes " * 30, "no"]))


def test_an_evaluation_of_options_shares_images_unless_it_is_turned_off(bundle, rows):
    class Asked(rows):
        def sample(self, index, epoch=0):
            return replace(super().sample(index), images=super().sample(0).images if index % 3 != 2 else [])

    options = dict(scoring="options", choices=CHOICES, progress=False)
    shared, plain = (evaluate_split(bundle, Asked(5), {}, share_images=flag, **options) for flag in (True, False))
    for row, other in zip(shared.rows, plain.rows, strict=True):
        assert row.pop("scores") == pytest.approx(other.pop("scores"), abs=1e-6)
        assert row == other
