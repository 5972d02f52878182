"""Images, questions and options of calls in Python, as samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from mllm.dataset.readers import read_images
from mllm.errors import ConfigError, DataError, hint
from mllm.models.generation.options import GenerationOptions
from mllm.structures import IMAGE, Sample, Turn

if TYPE_CHECKING:
    from mllm.predict.model_answer import ModelAnswer

ImageInput: TypeAlias = "str | Path | Image.Image | Mapping[str, Any]"
"""File, folder of a DICOM series, picture, or an object with the `path` of a file and options of its reader."""
Images: TypeAlias = "ImageInput | Sequence[ImageInput] | None"
READER_OPTIONS = ("frames", "slice", "axis", "volume", "page", "window", "square")
"""Options of the readers of images."""
PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "La", "RGBa")
"""Modes of pictures with 8 bits, whose colors Pillow converts without a choice of gray levels."""


def split_options(options: Mapping[str, Any]) -> tuple[GenerationOptions, dict[str, Any]]:
    """Divide keyword arguments into the options of generation and those of the readers of images.

    Raises:
        ConfigError: A name is unknown, or `stop` is no text and no list of texts.
    """
    names = [item.name for item in fields(GenerationOptions)]
    for name in options:
        if name not in names and name not in READER_OPTIONS:
            raise ConfigError(f"there is no option '{name}'{hint(name, [*names, *READER_OPTIONS])}")
    chosen = {name: value for name, value in options.items() if name in names}
    if "stop" in chosen:
        stop = chosen["stop"]
        chosen["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    reader = {name: value for name, value in options.items() if name in READER_OPTIONS}
    return GenerationOptions(**chosen), reader


def asked_sample(
    images: Images,
    question: str,
    reader: Mapping[str, Any],
    modality: str | None = None,
    after: ModelAnswer | None = None,
) -> Sample:
    """Return a question with its images, after the conversation of an earlier answer.

    Args:
        images: Images of the question.
        question: Text.
        reader: Options of the readers of all images.
        modality: Text before the question, as in `VQADataset`, so that the prompt is the one of training.
        after: Earlier answer; None: the conversation begins.
    """
    new = read_all(images, reader)
    text = f"{modality}: {question}" if modality else question
    if after is None:
        return Sample([Turn("user", text)], new, source="the question")
    # Without a placeholder all images would belong to the first question.
    former = after.conversation
    if after.images and not any(IMAGE in turn.text for turn in former):
        first = next(index for index, turn in enumerate(former) if turn.role == "user")
        former[first] = Turn("user", IMAGE * len(after.images) + former[first].text)
    text = text if IMAGE in text else IMAGE * len(new) + text
    return Sample([*former, Turn("user", text)], [*after.images, *new], source="the question")


def views_of(views: Mapping[str, ImageInput], reader: Mapping[str, Any]) -> Sample:
    """Return a sample of named views. Raise `DataError` if the file of a view has several images."""
    images = []
    for name, image in views.items():
        read = read_all(image, reader)
        if len(read) != 1:
            raise DataError(f"the view {name} has {len(read)} images, but one is expected: select one")
        images += read
    return Sample([Turn("user", "")], images, list(views), source="the views")


def read_all(images: Images, reader: Mapping[str, Any]) -> list[Image.Image]:
    """Return images in RGB. Raise `DataError` for an image that cannot be read."""
    if images is None:
        return []
    if isinstance(images, Sequence) and not isinstance(images, str):
        return [image for part in images for image in read_all(part, reader)]
    if isinstance(images, Image.Image):
        if images.mode not in PLAIN_MODES:
            raise DataError(
                f"a picture of mode {images.mode} has more than 8 bits: pass its file, so that a window is applied"
            )
        return [images.convert("RGB")]
    if isinstance(images, Mapping):
        options = dict(images)
        path = options.pop("path", None)
        if path is None:
            raise DataError("an image must be a file, a picture, or an object with a 'path'")
        return read_images(path, **{**reader, **options})
    if not isinstance(images, (str, Path)):
        raise DataError(
            f"an image must be a file, a picture of Pillow, or an object with a 'path', not {type(images).__name__}"
        )
    return read_images(images, **reader)
