"""Pictures of the predicted and true boxes, points and masks of an evaluation."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mllm.dataset.base import SampleDataset
from mllm.engine.answered_rows import StoredFields
from mllm.engine.evaluation import Evaluation
from mllm.engine.predictions import answers_of
from mllm.report.drawing import draw_answer

logger = logging.getLogger(__name__)


def draw_evaluation(evaluation: Evaluation, split: SampleDataset, folder: Path) -> Evaluation:
    """Write a picture of each row with a predicted or true box, point or mask.

    Returns:
        The evaluation with the names of the pictures in the rows, as `drawings`.
    """
    drawn, count = StoredFields(len(split)), 0
    for number, (index, row) in enumerate(evaluation.rows.numbered(), start=1):
        prediction, reference = answers_of(row)
        if prediction.marks or reference.marks:
            images = split.sample(index).images
            files = draw_answer(images, prediction.marks, folder / f"{number:06}.png", reference.marks)
            drawn.add(index, {"drawings": [file.name for file in files]})
            count += len(files)
    logger.info("%d pictures written to %s", count, folder)
    rows = evaluation.rows.with_fields(lambda index, row: drawn.get(index) or {})
    return replace(evaluation, rows=rows)
