"""Datasets of image captions, with and without boxes of the phrases."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import (
    GroundingDataset,
    answer_turn,
    index_group,
    plain_text,
    without_placeholders,
)
from mllm.dataset.tables.values import text_of
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import BOX, Sample

PHRASE = re.compile(r"<ph_st>(.*?)<ph_ed>")
"""A phrase of Flickr30k Entities with the delimiters of Shikra's files."""


@DATASETS.register_module()
class CaptionDataset(GroundingDataset):
    """Image captions. Row: {"img_path", "caption"}."""

    required = ("img_path", "caption")
    default_templates = templates.CAPTION

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        return Sample(
            [self.question_turn(self.draw_template(rng)), answer_turn(plain_text(row["caption"], "caption"))], [image]
        )

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a caption that names the lesions."""
        return {"img_path": row["image"], "caption": f"An image with {row['expression']}."}


@DATASETS.register_module()
class FlickrDataset(GroundingDataset):
    """Flickr30k Entities: captions with the boxes of each phrase.

    Row: {"image_id", "sentence", "boxes", "boxes_seq"}; the image is `{image_id}.jpg`. The sentence
    encloses phrases in `<ph_st>` and `<ph_ed>`; `boxes_seq` holds the indices of the boxes of each phrase.
    """

    required = ("image_id", "sentence", "boxes_seq")
    optional = ("boxes",)
    image_suffix = ".jpg"
    default_templates = templates.FLICKR

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(f"{row['image_id']}.jpg")
        text, groups = parse_phrases(row["sentence"], row["boxes_seq"], "sentence")
        marks = self.parse_boxes(image, row.get("boxes", []))
        return Sample([self.question_turn(self.draw_template(rng)), answer_turn(text, groups)], [image], marks=marks)

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a caption with one phrase for all lesions."""
        return {
            "image_id": row["image"].removesuffix(".jpg"),
            "sentence": "An image with <ph_st>lesions<ph_ed>.",
            "boxes": row["boxes"],
            "boxes_seq": [list(range(len(row["boxes"])))],
        }


def parse_phrases(text: Any, sequence: Any, field: str) -> tuple[str, list[list[int]]]:
    """Return the text with `<box>` after each phrase, and the box indices of each phrase.

    Raises `DataError` if the number of phrases and the length of `sequence` differ.
    """
    parts = PHRASE.split(text_of(text, field))
    phrases = len(parts) // 2
    if not isinstance(sequence, list) or len(sequence) != phrases:
        length = len(sequence) if isinstance(sequence, list) else sequence
        raise DataError(f"field '{field}' has {phrases} phrases, but there are boxes for {length}")
    plain = [without_placeholders(part.strip() if index % 2 else part, field) for index, part in enumerate(parts)]
    marked = "".join(f"{part} {BOX}" if index % 2 else part for index, part in enumerate(plain))
    return marked.strip(), [index_group(group, field) for group in sequence]
