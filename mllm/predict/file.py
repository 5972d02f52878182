"""Questions in a file, answered row by row into another."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mllm.errors import DataError
from mllm.predict.options import answers
from mllm.structures import Answer, Bundle, Sample

logger = logging.getLogger("mllm.pipeline.predict")
SAID = ("prediction", "boxes", "box_images", "points", "masks", "unreadable", "drawings")
"""What a row of `--out` says of the answer."""


def answer_file(bundle: Bundle, dataset: Any, arguments: argparse.Namespace) -> None:
    """Writes every row of `dataset` with its `prediction` to `--out`, in order, at once when all are there.

    What an answer names stands in `boxes`, `points` and `masks`, as in a run's `predictions.jsonl`; with `--draw` a
    row that names something also has its `drawings`, files in that folder. A field of the row itself that has one of
    these names is kept as `reference_...`.
    """
    from tqdm import tqdm

    from mllm.engine.evaluation import places
    from mllm.files import replaced_file

    skipped: list[str] = []
    done = 0
    with replaced_file(arguments.out) as file, tqdm(total=len(dataset), desc="answers", unit="row") as bar:
        readable = _readable(dataset, skipped, arguments.on_error)
        while chunk := list(islice(readable, 8 * arguments.batch_size)):
            for row, sample, answer in _predicted(bundle, chunk, skipped, arguments, shift=done):
                done += 1
                said = {"prediction": answer.text, **places(answer), **_drawings(sample, answer, done, arguments)}
                given = {f"reference_{key}" if key in SAID else key: value for key, value in row.items()}
                file.write(json.dumps({**given, **said}, ensure_ascii=False) + "\n")
            bar.update(done + len(skipped) - bar.n)
        if not done:
            raise DataError(f"{arguments.batch}: none of its {len(skipped)} rows could be answered; first {skipped[0]}")
    for sentence in skipped:
        logger.warning("skipped %s", sentence)
    logger.info("answers written to %s: %d, rows skipped: %d", arguments.out, done, len(skipped))


def _drawings(sample: Sample, answer: Answer, number: int, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The names of the pictures of the answer with this number, in the folder `--draw`; empty where there are none."""
    if arguments.draw is None:
        return {}
    from mllm.report.drawing import draw_answer

    files = draw_answer(sample.images, answer.marks, Path(arguments.draw) / f"{number:06}.png")
    return {"drawings": [file.name for file in files]} if files else {}


def _predicted(
    bundle: Bundle,
    chunk: list[tuple[dict[str, Any], Sample]],
    skipped: list[str],
    arguments: argparse.Namespace,
    shift: int,
) -> Iterator[tuple[dict[str, Any], Sample, Answer]]:
    """Each row of a chunk with its answer; where the encoder refuses one and errors are skipped, one by one."""
    rows, samples = zip(*chunk, strict=True)
    try:
        yield from zip(rows, samples, answers(bundle, samples, arguments, shift), strict=True)
    except DataError as error:
        if arguments.on_error == "raise":
            raise
        if len(chunk) == 1:
            skipped.append(str(error))
            return
        for offset, one in enumerate(chunk):
            yield from _predicted(bundle, [one], skipped, arguments, shift + offset)


def _readable(dataset: Any, skipped: list[str], on_error: str) -> Iterator[tuple[dict[str, Any], Sample]]:
    """Each row with its sample; where errors are skipped, their sentences go to `skipped`."""
    for index in range(len(dataset)):
        try:
            yield dataset.records[index], dataset.sample(index)
        except DataError as error:
            if on_error == "raise":
                raise
            skipped.append(str(error))
