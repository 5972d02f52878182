"""Prediction for one question, a file of questions, a conversation, or the views of one study."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.config.hardware import check_packages
from mllm.config.schema import ModelArgs
from mllm.dataset.checking import check_splits
from mllm.dataset.readers import read_images
from mllm.engine.process_group import end_processes, start_processes
from mllm.errors import ConfigError, DataError, with_location
from mllm.export.saved_model import adapter_args, adapter_facts, whole_model_args
from mllm.models.generation.options import GenerationOptions
from mllm.predict.batch import BatchPredictor, predict_file
from mllm.predict.chat import chat
from mllm.predict.library import load_model
from mllm.predict.load import best_hardware
from mllm.predict.model_answer import ModelAnswer, format_answer
from mllm.predict.questions import Questions
from mllm.predict.request import Request
from mllm.predict.views import ViewInputs, views_sample
from mllm.protocols import Encoder
from mllm.registry import DATASETS
from mllm.report.drawing import refuse_drawing
from mllm.structures import Sample, Turn

logger = logging.getLogger(__name__)
ABOUT_IMAGE = re.compile(r"\b(images?|pictures?|photo(graph)?s?|scans?|x-rays?|radiographs?|slides?)\b", re.IGNORECASE)
"""Words of a question about an image."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of `predict`.

    One of `adapter` and `model`, and one of `question`, `batch`, `chat` and `views` must be set.
    """

    adapter: str | None = None
    """An adapter folder, the run folder around it, or a name on the Hub."""
    model: str | None = None
    """A folder or a Hub name of a whole model."""
    base: str | None = None
    """The base model of `adapter`; None: the one that `adapter_config.json` names."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `model_args` that replace the saved ones; None leaves a key unchanged."""
    question: str | None = None
    images: Sequence[str] = ()
    """Image files of `question` or of the first question of `chat`."""
    modality: str | None = None
    """Text before the question, as written by `VQADataset`."""
    chat: bool = False
    batch: str | None = None
    """A json, jsonl or csv file of questions."""
    out: str | None = None
    """The output file of `batch`."""
    image_folder: str | None = None
    """The folder of the images of `batch`; None: the folder of the file."""
    on_error: str = "raise"
    """'raise' or 'skip' for rows of `batch` that cannot be used."""
    views: ViewInputs = field(default_factory=ViewInputs)
    reader: Mapping[str, Any] = field(default_factory=dict)
    """Options of `read_images`."""
    draw: str | None = None
    """A PNG file for the predicted boxes, points and masks; for `batch` a folder, with true ones beside them."""
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    batch_size: int = 4
    """Number of answers that are computed together."""


def predict(options: PredictOptions) -> None:
    """Print the answer to one question, write the answers to a file of questions, or start a conversation.

    Several processes share the rows of a file.
    """
    check_packages()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not options.batch:  # set by torchrun
        raise ConfigError("several processes share the rows of --batch: start one process for a question")
    start_processes(best_hardware().device)
    _predict(options)
    end_processes()


def _predict(options: PredictOptions) -> None:
    if options.adapter:
        args = adapter_args(options.adapter, options.base, **options.model_args)
    else:
        assert options.model is not None
        args = whole_model_args(options.model, **options.model_args)
    # The inputs are read before the model is loaded, which can take minutes.
    if options.draw:
        refuse_drawing(Path(options.draw), many=options.batch is not None)
    if options.batch and args.part != "vision":
        questions = read_questions(options)
        skip, advice = options.on_error == "skip", "correct the row, or leave such rows out with --on-error skip"
        check_splits({"batch": questions}, skip, advice)
        folder = Path(options.draw) if options.draw else None
        model = load_model(args, options.batch_size)
        predictor = BatchPredictor(model, questions, options.generation, options.on_error, folder)
        predict_file(predictor, str(options.out))
        return
    sample = read_sample(options, args)
    model = load_model(args, options.batch_size)
    if options.chat:
        chat(model, sample.images, options.generation)
        return
    if advice := image_advice(sample, model.variant().encoder, args):
        logger.warning("%s", advice)
    ((answer,),) = model.answer_all([Request(sample, options.generation)])
    if not answer.text.strip():
        logger.warning("the answer is empty")
    print(format_answer(answer, len(sample.images)))
    draw(answer, options.draw)


def read_sample(options: PredictOptions, args: ModelArgs) -> Sample:
    """Return the question with its images, or the views of a model with `part='vision'`.

    For a conversation the sample holds the images only.
    """
    if args.part == "vision":
        return views_sample(options.views, args, options.reader)
    if options.views:
        raise ConfigError("--video and --view require a model with part='vision'; use --image for this model")
    images = [image for path in options.images for image in read_images(path, **options.reader)]
    question = options.question or ""
    # The same format as in VQADataset, so that the prompt is the one of training.
    text = f"{options.modality}: {question}" if options.modality else question
    return Sample(turns=[Turn("user", text)], images=images, source="--question")


def image_advice(sample: Sample, encoder: Encoder, args: ModelArgs) -> str:
    """Return a hint for a question that probably needs an image and has none, or an empty text.

    A question without image is allowed. The hint is for questions that mention an image, and for adapters that were
    trained on a dataset with images.
    """
    if sample.images or not encoder.image_token_ids:
        return ""
    question = sample.turns[0].text
    if ABOUT_IMAGE.search(question):
        return f"the question '{question}' mentions an image, but none was passed: add --image FILE"
    dataset = images_of_training(args)
    return (
        f"the adapter was trained on images ({dataset}), but the question has none: add --image FILE" if dataset else ""
    )


def images_of_training(args: ModelArgs) -> str:
    """Return the dataset of images on which an adapter was trained; empty for a text dataset and an unknown one."""
    split = None if args.adapter_path is None else adapter_facts(args).data.get("train")
    if split is None or split.type not in DATASETS.names() or not DATASETS.find(split.type).has_images:
        return ""
    return split.type


def read_questions(options: PredictOptions) -> Questions:
    """Return the rows of `options.batch` as a dataset; raises `ConfigError` if `options.out` exists."""
    assert options.batch is not None
    assert options.out is not None
    if Path(options.out).exists():
        raise ConfigError(f"--out {options.out} exists; remove it or choose another name")
    marks = options.draw is not None
    try:
        return Questions(options.batch, options.image_folder, options.modality, marks, reader=options.reader)
    except DataError as error:
        raise with_location(error, f"--batch {options.batch}") from error


def draw(answer: ModelAnswer, path: str | None) -> None:
    """Draw the marks of an answer to `path`, unless it is None, and log the files and unreadable marks."""
    if answer.unreadable:
        logger.warning("boxes or points in the answer that cannot be parsed: %d", answer.unreadable)
    if path is None:
        return
    if files := answer.draw(path):
        logger.info("pictures written: %s", ", ".join(map(str, files)))
    else:
        logger.info("the answer contains no box, point or mask; no picture was written")
