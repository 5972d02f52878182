"""Prediction for the rows of a file."""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from mllm.engine.evaluation import mark_fields
from mllm.errors import DataError, errors_of_row
from mllm.models.generation.options import GenerationOptions
from mllm.predict.loaded_model import LoadedModel
from mllm.predict.model_answer import ModelAnswer
from mllm.predict.questions import Questions
from mllm.predict.request import Prepared, Request
from mllm.predict.writer import write_predictions
from mllm.report.drawing import draw_answer

logger = logging.getLogger(__name__)
PREDICTED = ("prediction", "boxes", "box_images", "points", "masks", "mask_boxes", "unreadable", "drawings")
"""Fields that a prediction adds to a row."""
Row = dict[str, Any]


@dataclass
class BatchPredictor:
    """Prediction for the rows of a dataset, in order.

    With `on_error='skip'` a row that cannot be read or encoded is left out and its message is appended to `skipped`;
    with 'raise' its `DataError` is raised. Of several processes, each one predicts for every n-th row.
    """

    model: LoadedModel
    dataset: Questions
    options: GenerationOptions
    on_error: str = "raise"
    draw: Path | None = None
    """Folder of the pictures of predicted and true boxes, points and masks; None writes no pictures."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Index and message of the rows of this process that were left out."""

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the index and the fields of each row of this process, with its prediction.

        `boxes`, `points` and `masks` have the format of `predictions.jsonl`; `drawings` are the names of the files in
        `draw`. A field of the row with one of these names is renamed to `reference_...`.
        """
        state = PartialState()
        own = range(state.process_index, len(self.dataset), state.num_processes)
        with tqdm(total=len(own), desc="predictions", unit="row", disable=not state.is_main_process) as bar:
            prepared = self._prepared(own)
            done = 0
            while window := list(islice(prepared, self.model.window)):
                answers = dict(self.model.answers([one for _, _, one in window]))
                for place, (index, row, one) in enumerate(window):
                    done += 1
                    (answer,) = answers[place]
                    fields = {f"reference_{key}" if key in PREDICTED else key: value for key, value in row.items()}
                    drawings = self._draw(one, answer, index + 1)
                    yield index, {**fields, "prediction": answer.text, **mark_fields(answer), **drawings}
                bar.update(done + len(self.skipped) - bar.n)

    def _prepared(self, indices: Iterable[int]) -> Iterator[tuple[int, Row, Prepared]]:
        """Yield index, fields and encoded question of each row."""
        for index in indices:
            try:
                with errors_of_row(f"{self.dataset.records.path}, row {index + 1}"):
                    row = self.dataset.records[index]
                    request = Request(self.dataset.sample(index), self.options, number=index)
                item = index, row, self.model.prepare(request)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                self.skipped.append((index, str(error)))
            else:
                yield item

    def _draw(self, prepared: Prepared, answer: ModelAnswer, number: int) -> dict[str, list[str]]:
        """Draw the answer of row `number` and return the file names as a field of the row."""
        if self.draw is None:
            return {}
        true = prepared.request.sample.marks
        files = draw_answer(answer.images, answer.marks, self.draw / f"{number:06}.png", true)
        return {"drawings": [file.name for file in files]} if files else {}


def predict_file(predictor: BatchPredictor, out: str | Path) -> None:
    """Write the rows of `predictor` to `out` as JSON lines and log the skipped rows.

    Each of several processes writes a file beside `out`, and the first one writes all rows in their order.

    Raises:
        DataError: No row can be used.
    """
    state = PartialState()
    if state.num_processes == 1:
        count = write_predictions(out, _in_use(predictor.rows(), predictor))
        _log(predictor.skipped, count, out)
        return
    parts = [Path(f"{out}.part-{number}") for number in range(state.num_processes)]
    own = parts[state.process_index]
    try:
        write_predictions(own, ({"index": index, "row": row} for index, row in predictor.rows()))
        predictor.skipped = sorted(gather_object(predictor.skipped))
        if state.is_main_process:
            rows = heapq.merge(*(_read_part(part) for part in parts), key=itemgetter(0))
            count = write_predictions(out, _in_use(rows, predictor))
            _log(predictor.skipped, count, out)
        state.wait_for_everyone()
    finally:
        own.unlink(missing_ok=True)


def _in_use(rows: Iterable[tuple[int, Row]], predictor: BatchPredictor) -> Iterator[Row]:
    """Yield the rows without their indices; raise `DataError` after the last one if there was none."""
    count = 0
    for _, row in rows:
        count += 1
        yield row
    if not count:
        skipped = predictor.skipped
        path = predictor.dataset.records.path
        raise DataError(f"{path}: none of its {len(skipped)} rows can be used; first error: {skipped[0][1]}")


def _read_part(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield index and fields of the rows that a process wrote."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            part = json.loads(line)
            yield part["index"], part["row"]


def _log(skipped: Iterable[tuple[int, str]], count: int, out: str | Path) -> None:
    messages = [message for _, message in skipped]
    for message in messages:
        logger.warning("skipped %s", message)
    logger.info("%d predictions written to %s; %d rows skipped", count, out, len(messages))
