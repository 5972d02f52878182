"""Answers questions about images with a trained adapter, a merged model or a base model.

python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --image scan.dcm --question "What is shown?"
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --image scan.dcm --question "Where?" --draw scan.png
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --batch questions.jsonl --out answers.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError, DataError
from mllm.pipeline import command_parser, quiet_progress, run_command
from mllm.structures import Answer, Bundle, Sample, Turn

logger = logging.getLogger("mllm.pipeline.predict")
SAID = ("prediction", "boxes", "box_images", "points", "masks", "unreadable", "drawings")
"""What a row of `--out` says of the answer."""


def main(argv: Sequence[str]) -> int:
    """Prints the answer to one question, or writes the answers to a file of them."""
    arguments = parse(argv)
    quiet_progress()
    from mllm.config.hardware import check_packages
    from mllm.pipeline.inference import adapter_args, best_hardware, load_for_answers, whole_model_args

    check_packages()
    given = {key: vars(arguments)[key] for key in ("type", "system", "load_in_4bit", "load_in_8bit")}
    if arguments.adapter:
        model_args = adapter_args(arguments.adapter, arguments.base, **given)
    else:
        model_args = whole_model_args(arguments.model, **given)
    # What is asked is read before the model is loaded: a misspelt path should not cost minutes.
    if arguments.draw:
        from mllm.pipeline.drawing import refuse_drawing

        refuse_drawing(Path(arguments.draw), many=bool(arguments.batch))
    asked = questions(arguments) if arguments.batch else question(arguments)
    bundle = load_for_answers(model_args, best_hardware())
    if isinstance(asked, Sample):
        answer = answers(bundle, [asked], arguments)[0]
        print(described(answer, len(asked.images)))
        draw(asked, answer, arguments)
    else:
        answer_file(bundle, asked, arguments)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; what does not fit together is refused as argparse does."""
    parser = command_parser("predict", "Answer questions about images.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--adapter", help="an adapter/ folder, the run folder around it, or a name on the Hub")
    source.add_argument("--model", help="a merged/ folder, or a base model without adapter")
    parser.add_argument("--base", help="the adapter's base model, where it is not the one that the adapter names")
    parser.add_argument("--type", help="the model type where the folder does not say it (medgemma, image-text)")
    parser.add_argument("--load-in-4bit", action="store_true", default=None, help="store the base's weights in 4 bits")
    parser.add_argument("--load-in-8bit", action="store_true", default=None, help="store the base's weights in 8 bits")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--image", action="append", default=[], help="an image file (PNG, DICOM ...); may be repeated")
    asked.add_argument("--question", help="the question; may hold <image> where an image stands")
    asked.add_argument("--modality", help="written before the question, as the dataset of the training did")
    asked.add_argument("--batch", help="a jsonl, json or csv file of rows with image (a path or a list) and question")
    asked.add_argument("--out", help="where the rows with their predictions go (jsonl)")
    asked.add_argument("--draw", help="a PNG of the image with what the answer names; with --batch a folder of them")
    asked.add_argument("--image-folder", help="where the images of --batch lie (default: beside it)")
    asked.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="what a bad row of --batch does")
    asked.add_argument("--system", help="system text, instead of the one of training")
    reading = parser.add_argument_group("reading images")
    reading.add_argument(
        "--frame", dest="frames", action="append", type=_number_or_word, help="frame of a DICOM or video, from 0"
    )
    reading.add_argument("--slice", action="append", type=_number_or_word, help="slice of a NIfTI volume, from 0")
    reading.add_argument("--axis", help="axis of a NIfTI volume: axial, coronal, sagittal")
    reading.add_argument("--volume", type=int, help="volume of a 4D NIfTI file, from 0")
    reading.add_argument("--page", action="append", type=_number_or_word, help="page of a TIFF file, from 0")
    reading.add_argument("--window", type=_window, help="a CT window: lung, or --window=-600,1500")
    speaking = parser.add_argument_group("answering")
    speaking.add_argument("--max-new-tokens", type=_positive, default=128)
    speaking.add_argument("--batch-size", type=_positive, default=4, help="questions answered at a time")
    speaking.add_argument("--temperature", type=float, default=0.0, help="0: the most likely answer; above: sampled")
    speaking.add_argument("--top-p", type=float, default=1.0)
    speaking.add_argument("--seed", type=int, default=0, help="of the sampling")
    arguments = parser.parse_args(argv)
    if (arguments.question is None) == (arguments.batch is None):
        parser.error("give either --question (with --image) or --batch FILE (with --out FILE)")
    if (arguments.batch is None) != (arguments.out is None):
        parser.error("--batch and --out belong together")
    if arguments.batch and arguments.image:
        parser.error("--image belongs to --question; in --batch each row names its own")
    if arguments.draw and not (arguments.image or arguments.batch):
        parser.error("--draw needs an --image to draw on")
    if arguments.base and arguments.model:
        parser.error("--base belongs to --adapter; --model needs none")
    if arguments.temperature < 0 or not 0 < arguments.top_p <= 1:
        parser.error("--temperature must be 0 or more, --top-p above 0 and at most 1")
    return arguments


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _window(text: str) -> str | list[float]:
    try:
        return [float(part) for part in text.split(",")] if "," in text else text
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a name nor CENTER,WIDTH in numbers") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def reader_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `read_images` that the command line gives; one frame is a number, several are a list."""
    options = {}
    for name in ("frames", "slice", "axis", "volume", "page", "window"):
        value = vars(arguments)[name]
        if value is not None:
            options[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    return options


def question(arguments: argparse.Namespace) -> Sample:
    """The one question of the command line with its images."""
    from mllm.dataset.readers import read_images

    options = reader_options(arguments)
    images = [image for path in arguments.image for image in read_images(path, **options)]
    # As VQADataset writes it, so that an answer is asked for as in training.
    text = f"{arguments.modality}: {arguments.question}" if arguments.modality else arguments.question
    return Sample(turns=[Turn("user", text)], images=images, source="--question")


def questions(arguments: argparse.Namespace) -> Any:
    """The rows of `--batch` as a dataset."""
    from mllm.pipeline.questions import Questions

    if Path(arguments.out).exists():
        raise ConfigError(f"--out {arguments.out} exists; remove it or choose another name")
    return Questions(arguments.batch, arguments.image_folder, arguments.modality, reader=reader_options(arguments))


def described(answer: Answer, images: int) -> str:
    """The answer's text and a line for each mark in it, in pixels; its image is said where there are several."""
    lines = [answer.text]
    for number, mark in enumerate(answer.marks, start=1):
        parts = []
        if mark.box is not None:
            parts.append("box x1 y1 x2 y2 = " + " ".join(f"{value:.1f}" for value in mark.box))
        if mark.point is not None:
            parts.append("point x y = " + " ".join(f"{value:.1f}" for value in mark.point))
        if mark.mask is not None:
            parts.append(f"mask of {int(mark.mask.sum()):,} pixels")
        where = f" in image {mark.image + 1}" if images > 1 else ""
        lines.append(f"  {number}{where}: {', '.join(parts)}")
    return "\n".join(lines)


def draw(sample: Sample, answer: Answer, arguments: argparse.Namespace) -> None:
    """Draws what an answer names over the images, as `--draw` says, and says where the pictures lie."""
    if answer.unreadable:
        logger.warning("places in the answer that could not be read as a box or a point: %d", answer.unreadable)
    if arguments.draw is None:
        return
    from mllm.pipeline.drawing import draw_answer

    files = draw_answer(sample.images, answer.marks, Path(arguments.draw))
    said = f"drawn: {', '.join(map(str, files))}" if files else "the answer names no place: nothing was drawn"
    logger.info("%s", said)


def answers(bundle: Bundle, samples: Sequence[Sample], arguments: argparse.Namespace, shift: int = 0) -> list[Answer]:
    """The model's answers; `shift` keeps later rows from drawing the same random numbers as earlier ones."""
    from mllm.models.generation import generate

    sampled = {"do_sample": True, "temperature": arguments.temperature, "top_p": arguments.top_p}
    return generate(
        bundle,
        samples,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed + shift,
        progress=False,
        **(sampled if arguments.temperature > 0 else {}),
    )


def answer_file(bundle: Bundle, dataset: Any, arguments: argparse.Namespace) -> None:
    """Writes every row of `dataset` with its `prediction` to `--out`, in order, at once when all are there.

    What an answer names stands in `boxes`, `points` and `masks`, as in a run's `predictions.jsonl`; with `--draw` a
    row that names something also has its `drawings`, files in that folder. A field of the row itself that has one of
    these names is kept as `reference_...`.
    """
    from tqdm import tqdm

    from mllm.engine.examination import places
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
    from mllm.pipeline.drawing import draw_answer

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


if __name__ == "__main__":
    sys.exit(run_command(main))
