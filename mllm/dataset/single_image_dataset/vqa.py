"""Dataset of questions and answers about images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from mllm.dataset.base import ImageTextDataset
from mllm.dataset.tables.values import AnswerChoice, choose_answer, is_empty, text_of
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import IMAGE, Sample, Turn


@DATASETS.register_module()
class VQADataset(ImageTextDataset):
    """One question and one answer about one or several images.

    A row has `image` (a path, an object `{"path": ..., "frames": 3}` with options of the image's reader, the bytes of a
    file as tables of the Hub have them, or a list of these; the path of a DICOM series is its folder or the list of its
    files), `question` and `answer`. Optional fields
    are `patient` (rows of one patient stay in one split) and `modality`, which is written before the question; the
    argument `modality` is the default for rows without the field. `<image>` in a question marks the position of an
    image; without it the images precede the question. Numbers, lists of numbers and objects in `answer` are learned as
    JSON text; of a list of different texts, the answers of several annotators, `choose_answer` selects one: 'first' or
    'majority'.
    """

    has_measures = False
    required: ClassVar[tuple[str, ...]] = ("image", "question", "answer")

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        modality: str | None = None,
        choose_answer: AnswerChoice | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_path, image_folder, **options)
        self.default_modality = modality
        self.choose_answer = choose_answer

    @override
    def parse(self, row: dict[str, Any]) -> Sample:
        entries = row["image"] if isinstance(row["image"], list) else [row["image"]]
        images = [image for entry in entries for image in self.read_images(entry)]
        question, modality = text_of(row["question"], "question"), row.get("modality")
        modality = self.default_modality if is_empty(modality) else text_of(modality, "modality")
        if modality:
            question = f"{modality}: {question}"
        placeholders = question.count(IMAGE)
        if not placeholders:
            question = " ".join([*[IMAGE] * len(images), question])
        elif placeholders != len(images):
            raise DataError(f"the question has {placeholders} {IMAGE} for {len(images)} images")
        answer = self.answer_of(row["answer"])
        return Sample(turns=[Turn("user", question), Turn("assistant", answer)], images=images, modality=modality)

    def answer_of(self, value: Any) -> str:
        """Return the text of the field `answer`."""
        if isinstance(value, list) and any(isinstance(item, str) for item in value):
            return choose_answer(value, self.choose_answer, "answer")
        if not isinstance(value, (list, dict)):
            return text_of(value, "answer")
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise DataError("field 'answer' has a number that is not finite") from None
