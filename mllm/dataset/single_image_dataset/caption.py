"""Images and what they show, in a sentence: with and without the places of its things."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answered, boxes_in, words
from mllm.errors import DataError
from mllm.registry import DATASETS
from mllm.structures import BOX, Sample

PHRASE = re.compile(r"<ph_st>(.*?)<ph_ed>")
"""A phrase of Flickr30k entities, as Shikra's files bracket it."""


@DATASETS.register_module()
class CaptionDataset(GroundingDataset):
    """What does the image show? Row: {"img_path", "caption"}."""

    required = ("img_path", "caption")
    sentences = templates.CAPTION

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        return Sample([self.asked(self.sentence(rng)), answered(words(row["caption"], "caption"))], [image])

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """What is there."""
        return {"img_path": row["image"], "caption": f"An image with {row['expression']}."}


@DATASETS.register_module()
class FlickrDataset(GroundingDataset):
    """What does the image show, and where is each thing of it?

    Row: {"image_id", "sentence", "boxes", "boxes_seq"}; the image is `{image_id}.jpg`. The sentence brackets phrases by
    `<ph_st>` and `<ph_ed>`, and `boxes_seq` names the boxes of each.
    """

    required = ("image_id", "sentence", "boxes_seq")
    image_suffix = ".jpg"
    sentences = templates.FLICKR

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(f"{row['image_id']}.jpg")
        text, places = grounded(row["sentence"], row["boxes_seq"], "sentence")
        marks = boxes_in(image, row.get("boxes", []))
        return Sample([self.asked(self.sentence(rng)), answered(text, places)], [image], marks=marks)

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Every lesion is a phrase."""
        return {
            "image_id": row["image"].removesuffix(".jpg"),
            "sentence": "An image with <ph_st>lesions<ph_ed>.",
            "boxes": row["boxes"],
            "boxes_seq": [list(range(len(row["boxes"])))],
        }


def grounded(text: str, sequence: Any, field: str) -> tuple[str, list[list[int]]]:
    """A text with `<box>` behind each bracketed phrase, and their boxes; raises `DataError` where counts differ."""
    parts = PHRASE.split(str(text))
    phrases = len(parts) // 2
    if not isinstance(sequence, list) or len(sequence) != phrases:
        given = len(sequence) if isinstance(sequence, list) else sequence
        raise DataError(f"field '{field}' brackets {phrases} phrases, and there are boxes for {given}")
    plain = [words(part, field) if number % 2 else _checked(part, field) for number, part in enumerate(parts)]
    written = "".join(f"{part} {BOX}" if number % 2 else part for number, part in enumerate(plain))
    return written.strip(), [[int(index) for index in group] for group in sequence]


def _checked(part: str, field: str) -> str:
    words(part, field)
    return part
