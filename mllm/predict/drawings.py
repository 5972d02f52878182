"""Pictures of the predicted and true boxes, points and masks of an evaluation."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mllm.dataset.base import SampleDataset
from mllm.engine.evaluation import Evaluation
from mllm.engine.predictions import answers_of
from mllm.report.drawing import draw_answer

logger = logging.getLogger(__name__)


def draw_evaluation(evaluation: Evaluation, split: SampleDataset, folder: Path) -> Evaluation:
    """Write a picture of each row with a predicted or true box, point or mask.

    Returns:
        The evaluation with the names of the pictures in the rows, as `drawings`.
    """
    names: dict[int, list[str]] = {}
    for number, (index, row) in enumerate(evaluation.rows.numbered(), start=1):
        prediction, reference = answers_of(row)
        if prediction.marks or reference.marks:
            images = split.sample(index).images
            files = draw_answer(images, prediction.marks, folder / f"{number:06}.png", reference.marks)
            names[index] = [file.name for file in files]
    logger.info("%d pictures written to %s", sum(map(len, names.values())), folder)
    rows = evaluation.rows.with_fields(lambda index, row: {"drawings": names[index]} if index in names else {})
    return replace(evaluation, rows=rows)
