"""Answers to a split, as in use."""

from mllm.engine.examination import examine
from mllm.models.generation import generate
from mllm.structures import Turn

TALKING = dict(max_new_tokens=6, do_sample=True, temperature=20.0, progress=False)
"""Left to itself this tiny model says nothing."""


def test_every_row_stands_beside_its_question_and_true_answer(make_bundle, rows):
    bundle, split = make_bundle(), rows(5)
    seen = []

    def metric(predictions, references):
        seen.append((list(predictions), list(references)))
        return {"count": float(len(predictions))}

    answered, figures, *_ = examine(bundle, split, metric, **TALKING)
    predictions = generate(bundle, [split.sample(index) for index in range(5)], **TALKING)
    assert len(set(predictions)) == 5
    assert figures == {"count": 5.0}
    for index, row in enumerate(answered):
        sample = split.sample(index)
        assert row["source"] == f"rows, row {index}"
        assert row["question"] == sample.turns[0].text
        assert row["reference"] == sample.turns[-1].text
        assert row["prediction"] == predictions[index]
    assert seen == [(predictions, [row["reference"] for row in answered])]


def test_the_true_answer_is_never_shown_to_the_model(make_bundle, rows):
    bundle, split = make_bundle(), rows(3)

    class Lying(rows):
        def sample(self, index, epoch=0):
            sample = super().sample(index, epoch)
            sample.turns[-1] = Turn("assistant", "something else")
            return sample

    answers = [[row["prediction"] for row in examine(bundle, some, None, **TALKING)[0]] for some in (split, Lying(3))]
    assert answers[0] == answers[1]
    assert any(answers[0])


def test_a_split_may_be_asked_without_a_metric(make_bundle, rows):
    answered, figures, *_ = examine(make_bundle(), rows(1), None, max_new_tokens=2, progress=False)
    assert (len(answered), figures) == (1, {})
