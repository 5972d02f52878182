"""Evaluation with images of several sizes: mean of the probabilities of options, or vote of the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mllm.config.schema import ModelArgs, RunConfig
from mllm.engine.answered_rows import Row
from mllm.engine.answering import Answerer, Answers, digest_of
from mllm.engine.evaluation import Samples
from mllm.engine.micro_batches import release_memory
from mllm.engine.unfinished import OrderedRecords, Record, UnfinishedPredictions
from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.models.builder.builder import load_encoder
from mllm.parsing import normalize, options_in, parse_option
from mllm.structures import Answer, Sample

SIZE_KEY = "image_size"
"""Key of `model_args` that a scale replaces."""


def scales_of(config: RunConfig) -> Sequence[int]:
    """Return the sizes of images of an evaluation; empty: the size of the model alone."""
    scales: Sequence[int] = config.data_args.gen_kwargs.get("scales", ())
    return scales


def check_scales(scales: Sequence[int], args: ModelArgs) -> None:
    """Raise `ConfigError` if a model cannot read images of a size, before any weights are loaded.

    Args:
        scales: Heights and widths of images in pixels.
        args: The model.
    """
    if any(scale < 1 for scale in scales) or len(set(scales)) < len(scales):
        raise ConfigError(f"data_args.gen_kwargs.scales must be different sizes in pixels, not {list(scales)}")
    if SIZE_KEY in FAMILIES.find(args.type, args.part).unsupported_keys:
        raise ConfigError(
            f"data_args.gen_kwargs.scales: models of type '{args.type}' read images of one size only, that of their "
            "checkpoint: remove scales"
        )
    for scale in scales:
        load_encoder(replace(args, image_size=scale))


class RepeatedSamples:
    """Split whose rows occur once for each scale, all rows of a scale together."""

    def __init__(self, samples: Samples, scales: int) -> None:
        self.samples, self.scales = samples, scales

    def __len__(self) -> int:
        return self.scales * len(self.samples)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the sample of a row in an epoch."""
        return self.samples.sample(index % len(self.samples), epoch)

    def group(self, index: int, epoch: int = 0) -> str | None:
        """Return the patient of a row."""
        return self.samples.group(index % len(self.samples), epoch)


class ScaledAnswers:
    """Answers to the rows of `RepeatedSamples` by a model that is loaded for one scale after the other.

    Args:
        scales: Heights and widths of images in pixels.
        rows: Number of rows of the split.
        load: Function that loads the model for a scale. The former one is freed before.
    """

    def __init__(self, scales: Sequence[int], rows: int, load: Callable[[int], Answerer]) -> None:
        self.scales, self.rows, self.load = scales, rows, load
        self._number, self._answerer = 0, load(scales[0])
        self.window, self.has_scores = self._answerer.window, self._answerer.has_scores
        self.shares_images = self._answerer.shares_images

    def check(self, sample: Sample) -> None:
        """Raise `UserError` if the sample cannot be answered."""
        self._answerer.check(sample)

    def reference(self, sample: Sample) -> Answer:
        """Return the reference of a sample in the form of the answers."""
        return self._answerer.reference(sample)

    def answers(self, samples: Mapping[int, Sample], answered: Container[int]) -> Iterator[Answers]:
        """Yield the answers to the samples of a window, which may belong to two scales; see `Answerer`."""
        for number in sorted({index // self.rows for index in samples}):
            first = number * self.rows
            part = {index - first: sample for index, sample in samples.items() if index // self.rows == number}
            done = {row for row in part if first + row in answered}
            if len(done) == len(part):
                continue
            for batch in self._at(number).answers(part, done):
                yield {first + row: answer for row, answer in batch.items()}

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the first model, and the scales."""
        return {**self._answerer.fingerprint(), "scales in data_args.gen_kwargs": digest_of(list(self.scales))}

    def _at(self, number: int) -> Answerer:
        """Return the answerer of a scale."""
        if number != self._number:
            del self._answerer
            release_memory()
            self._number, self._answerer = number, self.load(self.scales[number])
        return self._answerer


class CombinedRecords:
    """Records of the rows of a split, combined from those of `RepeatedSamples`.

    Args:
        files: Files with the records of all scales.
        scales: The scales in pixels.
        choices: Options of questions that list none.
    """

    def __init__(self, files: UnfinishedPredictions, scales: Sequence[int], choices: Sequence[str]) -> None:
        self.files, self.scales, self.choices = files, scales, choices

    def ordered(self, rows: int, with_skipped: bool) -> _Combined:
        """Return one record for each row in the order of the split; a row that one scale skipped is skipped."""
        return _Combined(self, self.files.ordered(rows * len(self.scales), with_skipped))


@dataclass(frozen=True)
class _Combined:
    """Records of rows, combined from those of all scales for each pass."""

    source: CombinedRecords
    records: OrderedRecords

    def answered(self) -> np.ndarray:
        """Return the indices of the rows that have an answer at each scale."""
        return self.records.answered(len(self.source.scales))

    def skipped(self) -> np.ndarray:
        """Return the indices of the rows that were skipped at a scale."""
        return self.records.skipped(len(self.source.scales))

    def chosen(self, indices: np.ndarray) -> Iterator[Record]:
        """Yield the records of rows, which have an answer or were skipped."""
        scales, choices = self.source.scales, self.source.choices
        for index, parts in zip(indices.tolist(), self.records.together(len(scales), indices), strict=True):
            if skipped := next((part for part in parts if "skipped" in part), None):
                yield {**skipped, "index": index}
            else:
                yield {"index": index, "row": combined([part["row"] for part in parts], scales, choices)}


def combined(rows: Sequence[Row], scales: Sequence[int], choices: Sequence[str] = ()) -> Row:
    """Return the row of an answer that is combined from those of several scales.

    With probabilities of options, these are averaged, and the answer is the option with the largest mean. Otherwise the
    answer is the one that most scales give, and in a tie that of the scale that is named last; answers are equal if
    they name the same option of the question, or have the same normalized text. An answer that names no option of a
    question with options has no vote, unless no answer has one.

    Args:
        rows: Row of each scale.
        scales: The scales in pixels.
        choices: Options of questions that list none.
    """
    options = options_in(rows[0]["question"])
    predictions = {str(scale): row["prediction"] for scale, row in zip(scales, rows, strict=True)}
    tokens = sum(row["tokens"] for row in rows)
    if rows[0].get("scores"):
        scores = {key: sum(row["scores"][key] for row in rows) / len(rows) for key in rows[0]["scores"]}
        texts = options or {choice: choice for choice in choices}
        best = max(scores, key=scores.__getitem__)
        chosen: dict[str, Any] = {
            **rows[-1],
            "prediction": next((answer for answer, text in texts.items() if text == best), best),
            "scores": scores,
        }
    else:
        chosen = _majority(rows, options)
    return {**chosen, "tokens": tokens, "scales": predictions}


def _majority(rows: Sequence[Row], options: Mapping[str, str]) -> Row:
    """Return the row whose answer most rows have; in a tie the last one of the answers with most votes."""
    votes: list[str | None]
    if options:
        votes = [parse_option(row["prediction"], options) for row in rows]
    else:
        votes = [normalize(row["prediction"]) for row in rows]
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return rows[-1]
    most = max(counts.values())
    return next(
        row for row, vote in reversed([*zip(rows, votes, strict=True)]) if vote is not None and counts[vote] == most
    )
