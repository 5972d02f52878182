"""Prediction for the rows of a file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

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
    with 'raise' its `DataError` is raised.
    """

    model: LoadedModel
    dataset: Questions
    options: GenerationOptions
    on_error: str = "raise"
    draw: Path | None = None
    """Folder of the pictures of predicted and true boxes, points and masks; None writes no pictures."""
    skipped: list[str] = field(default_factory=list)
    """Messages of the rows that were left out."""

    def rows(self) -> Iterator[Row]:
        """Yield each row with its prediction.

        `boxes`, `points` and `masks` have the format of `predictions.jsonl`; `drawings` are the names of the files in
        `draw`. A field of the row with one of these names is renamed to `reference_...`. Raises `DataError` after the
        last row if every row was skipped.
        """
        count = 0
        with tqdm(total=len(self.dataset), desc="predictions", unit="row") as bar:
            prepared = self._prepared()
            while window := list(islice(prepared, self.model.window)):
                answers = dict(self.model.answers([one for _, one in window]))
                for index, (row, one) in enumerate(window):
                    count += 1
                    (answer,) = answers[index]
                    fields = {f"reference_{key}" if key in PREDICTED else key: value for key, value in row.items()}
                    yield {
                        **fields,
                        "prediction": answer.text,
                        **mark_fields(answer),
                        **self._draw(one, answer, count),
                    }
                bar.update(count + len(self.skipped) - bar.n)
        if not count:
            raise DataError(
                f"{self.dataset.records.path}: none of its {len(self.skipped)} rows can be used; "
                f"first error: {self.skipped[0]}"
            )

    def _prepared(self) -> Iterator[tuple[Row, Prepared]]:
        """Yield each row with its encoded question."""
        for index in range(len(self.dataset)):
            try:
                with errors_of_row(f"{self.dataset.records.path}, row {index + 1}"):
                    row = self.dataset.records[index]
                    request = Request(self.dataset.sample(index), self.options, number=index)
                item = row, self.model.prepare(request)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                self.skipped.append(str(error))
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
    """Write the rows of `predictor` to `out` as JSON lines and log the skipped rows."""
    count = write_predictions(out, predictor.rows())
    for message in predictor.skipped:
        logger.warning("skipped %s", message)
    logger.info("%d predictions written to %s; %d rows skipped", count, out, len(predictor.skipped))
