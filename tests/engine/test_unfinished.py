"""Evaluations that are killed and continued."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from mllm.engine.answering import ModelAnswers
from mllm.engine.evaluation import answer_split, score_split
from mllm.engine.unfinished import UnfinishedPredictions, unfinished_files
from mllm.metrics.classification import Accuracy
from mllm.models.generation.shared_prompts import SharedPrompts

OPTIONS = dict(max_new_tokens=6, do_sample=True, temperature=20.0, batch_size=2)


class KilledError(OSError):
    """Stands for SIGKILL."""


class KillingFiles(UnfinishedPredictions):
    """Files that are killed in the middle of a line, after some bytes."""

    left = 10**9

    def _write(self, text: str) -> None:
        part = text.encode()[: self.left]
        super()._write(part.decode("utf-8", "ignore"))
        self.left -= len(part)
        if not self.left:
            raise KilledError


class TwoProcesses:
    """Stands for the state of one of two processes."""

    num_processes = 2

    def __init__(self, process_index: int) -> None:
        self.process_index = process_index

    def wait_for_everyone(self) -> None:
        pass


def test_a_process_without_a_row_removes_its_file_while_the_first_one_reads_the_answers(tmp_path):
    """A split has fewer rows than there are processes."""
    first, second = (UnfinishedPredictions(tmp_path, {}, process) for process in range(2))
    assert first.open() and second.open()
    first.append([{"index": 0, "row": {"prediction": "a"}}])
    ordered = first.ordered(1, with_skipped=False)
    second.close()
    assert [record["row"] for record in ordered.chosen(ordered.answered())] == [{"prediction": "a"}]
    assert not second.path.exists()


def evaluated(folder: Path, answerer, samples, kind=UnfinishedPredictions, left: int = 10**9):
    files = kind(folder, answerer.fingerprint())
    files.left = left
    assert files.open()
    try:
        continued = answer_split(answerer, samples, files, skip_failures=True, progress=False)
        return score_split(samples, files, {"accuracy": Accuracy}, True, continued)
    finally:
        files.close()


@pytest.fixture
def split(rows):
    """Twenty rows, of which the fourth cannot be used; the largest window has sixteen."""

    class Split(rows):
        reads = 0

        def sample(self, index, epoch=0):
            Split.reads += 1
            if index == 3:
                raise ValueError("a damaged file")
            return super().sample(index, epoch)

    return Split(20)


def test_an_evaluation_that_is_killed_at_any_byte_continues_with_equal_rows(make_bundle, split, tmp_path):
    answerer = ModelAnswers(make_bundle(), **OPTIONS)
    whole = evaluated(tmp_path / "whole", answerer, split)
    assert len({row["prediction"] for row in whole.rows}) > 10, "the answers differ"
    size = unfinished_files(tmp_path / "whole")[0].stat().st_size
    for kill in (40, size // 2 + 7, size - 1):
        folder = tmp_path / str(kill)
        with pytest.raises(KilledError):
            evaluated(folder, answerer, split, KillingFiles, kill)
        split.__class__.reads = 0
        again = evaluated(folder, answerer, split)
        assert list(again.rows.numbered()) == list(whole.rows.numbered()) and again.skipped == whole.skipped
        assert again.figures == whole.figures
        assert (again.continued > 0) == (kill > 40)
    assert split.reads < 20, "finished windows are not read again"


def test_answers_do_not_depend_on_batches_order_processes_and_continuation(make_bundle, rows, tmp_path, monkeypatch):
    """Two processes, one after the other, with batches of another size; a sampled answer depends on its row alone."""
    bundle = make_bundle()
    expected = list(evaluated(tmp_path / "one", ModelAnswers(bundle, **OPTIONS), rows(20)).rows)

    for rank in (1, 0):
        answerer = ModelAnswers(bundle, **{**OPTIONS, "batch_size": 1})
        monkeypatch.setattr("mllm.engine.evaluation.PartialState", lambda rank=rank: TwoProcesses(rank))
        files = UnfinishedPredictions(tmp_path / "two", answerer.fingerprint(), rank)
        assert files.difference() is None and files.open()
        answer_split(answerer, rows(20), files, progress=False)
        files.close()
    assert [path.name[-7:] for path in unfinished_files(tmp_path / "two")] == ["0.jsonl", "1.jsonl"]
    assert all("row" in path.read_text() for path in unfinished_files(tmp_path / "two"))
    assert list(score_split(rows(20), files, {}).rows) == expected


def test_questions_that_share_images_have_the_same_answers_in_all_processes_and_after_a_kill(
    make_bundle, rows, tmp_path, monkeypatch
):
    """Five images with three questions each, which are far apart in the split, and texts."""

    class Split(rows):
        def sample(self, index, epoch=0):
            sample, image = super().sample(index), super().sample(3 * (index % 5))
            return replace(sample, images=image.images) if sample.images else sample

    split, bundle = Split(20), make_bundle()
    groups = [index % 5 if split.sample(index).images else 5 + index for index in range(20)]
    expected = list(evaluated(tmp_path / "plain", ModelAnswers(bundle, **OPTIONS), split).rows)
    bundle.encoder.shares_images = True
    bundle.model.share_tokens(image_blocks=True)
    answerer = ModelAnswers(bundle, **OPTIONS)
    assert answerer.shares_images and not ModelAnswers(bundle, share_images=False, **OPTIONS).shares_images
    rows_of_images = []
    original = SharedPrompts.__init__
    monkeypatch.setattr(
        SharedPrompts,
        "__init__",
        lambda self, *parts: (rows_of_images.append(len(parts[1])), original(self, *parts))[1],
    )
    for rank, kill in ((1, 900), (1, 10**9), (0, 10**9)):
        monkeypatch.setattr("mllm.engine.evaluation.PartialState", lambda rank=rank: TwoProcesses(rank))
        files = KillingFiles(tmp_path / "shared", answerer.fingerprint(), rank)
        files.left = kill
        assert files.difference() is None and files.open()
        with pytest.raises(KilledError) if kill == 900 else nullcontext():
            answer_split(answerer, split, files, progress=False, groups=groups)
        files.close()
    assert list(score_split(split, files, {}).rows) == expected
    assert sum(rows_of_images) >= 13, "all questions with an image share it with another one"


def test_another_model_or_option_is_another_evaluation(make_bundle, rows, tmp_path):
    bundle = make_bundle()
    answerer = ModelAnswers(bundle, settings={"image_size": 112}, **OPTIONS)
    evaluated(tmp_path, answerer, rows(2))

    def difference(**options):
        return UnfinishedPredictions(
            tmp_path, ModelAnswers(bundle, **{"settings": {"image_size": 112}, **OPTIONS, **options}).fingerprint()
        ).difference()

    assert difference() is None
    assert difference(batch_size=8) is None
    assert difference(seed=1) == "options in data_args.gen_kwargs"
    assert difference(settings={"image_size": 224}) == "settings of model_args"
    next(p for name, p in bundle.model.named_parameters() if "lora_B" in name).data += 1e-3
    assert difference() == "model"


def test_two_commands_do_not_write_to_the_same_evaluation(tmp_path):
    first, second = (UnfinishedPredictions(tmp_path / "out", {"model": "a"}) for _ in range(2))
    assert first.open()
    assert list(first.records()) == []
    assert not second.open()
    first.close()
    assert not (tmp_path / "out").exists(), "an evaluation without an answer leaves nothing"
    assert second.open()
    second.append([{"index": 0, "row": {"prediction": "\ud800"}}])
    assert json.loads(json.dumps([*second.records()])) == [{"index": 0, "row": {"prediction": "\ud800"}}]
