"""Answers questions, about images or not, with a trained adapter, a merged model or a base model.

python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --image scan.dcm --question "What is shown?"
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --image scan.dcm --question "Where?" --draw scan.png
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --batch questions.jsonl --out answers.jsonl
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --chat --temperature 0.8 --top-p 0.9
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --video echo.avi --frames ED=46,ES=61
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline.command import command_parser, quiet_progress, run_command
from mllm.predict.options import add_speaking, answers, check_speaking
from mllm.predict.views import add_views, views_sample
from mllm.structures import Answer, Sample, Turn

logger = logging.getLogger("mllm.pipeline.predict")


def main(argv: Sequence[str]) -> int:
    """Prints the answer to one question, writes the answers to a file of them, or talks."""
    arguments = parse(argv)
    quiet_progress()
    from mllm.config.hardware import check_packages
    from mllm.predict.load import adapter_args, best_hardware, load_for_answers, whole_model_args

    check_packages()
    given = {key: vars(arguments)[key] for key in ("type", "system", "load_in_4bit", "load_in_8bit")}
    if arguments.adapter:
        model_args = adapter_args(arguments.adapter, arguments.base, **given)
    else:
        model_args = whole_model_args(arguments.model, **given)
    # What is asked is read before the model is loaded: a misspelt path should not cost minutes.
    if arguments.draw:
        from mllm.report.drawing import refuse_drawing

        refuse_drawing(Path(arguments.draw), many=bool(arguments.batch))
    if model_args.part == "vision":
        asked = views_sample(arguments, model_args, reader_options(arguments))
    elif arguments.video or arguments.view:
        raise ConfigError("--video and --view are for a model with part='vision'; show this one a frame by --image")
    else:
        asked = questions(arguments) if arguments.batch else question(arguments)
    bundle = load_for_answers(model_args, best_hardware())
    if arguments.chat:
        from mllm.predict.chat import chat

        chat(bundle, asked.images, arguments)
    elif isinstance(asked, Sample):
        answer = answers(bundle, [asked], arguments)[0]
        print(described(answer, len(asked.images)))
        draw(asked, answer, arguments)
    else:
        from mllm.predict.file import answer_file

        answer_file(bundle, asked, arguments)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; what does not fit together is refused as argparse does."""
    parser = command_parser("predict", "Answer questions, about images or not.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--adapter", help="an adapter/ folder, the run folder around it, or a name on the Hub")
    source.add_argument("--model", help="a merged/ folder, or a base model without adapter")
    parser.add_argument("--base", help="the adapter's base model, where it is not the one that the adapter names")
    parser.add_argument("--type", help="the model type where the folder does not say it (medgemma, causal-lm)")
    parser.add_argument("--load-in-4bit", action="store_true", default=None, help="store the base's weights in 4 bits")
    parser.add_argument("--load-in-8bit", action="store_true", default=None, help="store the base's weights in 8 bits")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--image", action="append", default=[], help="an image file (PNG, DICOM ...); may be repeated")
    asked.add_argument("--question", help="the question; may hold <image> where an image stands")
    asked.add_argument("--modality", help="written before the question, as the dataset of the training did")
    asked.add_argument("--chat", action="store_true", help="talk: each line is a question, asked with what was said")
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
    add_views(parser)
    add_speaking(parser)
    arguments = parser.parse_args(argv)
    measured = bool(arguments.video or arguments.view)
    if (arguments.question is not None) + (arguments.batch is not None) + arguments.chat + measured != 1:
        parser.error("give one of --question (with --image), --batch FILE (with --out FILE), --chat and --video FILE")
    if (arguments.batch is None) != (arguments.out is None):
        parser.error("--batch and --out belong together")
    if arguments.batch and arguments.image:
        parser.error("--image belongs to --question and --chat; in --batch each row names its own")
    if arguments.question is not None and not arguments.question.strip():
        parser.error("--question is empty")
    if measured and (arguments.image or arguments.frames):
        parser.error("--image and --frame belong to --question; --video and --view name what is measured")
    if arguments.named_frames and not measured:
        parser.error("--frames belongs to --video; one frame of an --image is chosen by --frame")
    if arguments.load_in_4bit and arguments.load_in_8bit:
        parser.error("--load-in-4bit and --load-in-8bit exclude each other")
    if arguments.draw and not (arguments.image or arguments.batch):
        parser.error("--draw needs an --image to draw on")
    if arguments.base and arguments.model:
        parser.error("--base belongs to --adapter; --model needs none")
    if arguments.chat and (arguments.draw or arguments.modality):
        parser.error("--draw and --modality belong to --question and --batch")
    check_speaking(parser, arguments)
    return arguments


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _window(text: str) -> str | list[float]:
    try:
        return [float(part) for part in text.split(",")] if "," in text else text
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a name nor CENTER,WIDTH in numbers") from error


def reader_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `read_images` that the command line gives; one frame is a number, several are a list."""
    options = {}
    for name in ("frames", "slice", "axis", "volume", "page", "window"):
        value = vars(arguments)[name]
        if value is not None:
            options[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    return options


def question(arguments: argparse.Namespace) -> Sample:
    """The one question of the command line with its images; of a chat, the images alone."""
    from mllm.dataset.readers import read_images

    options = reader_options(arguments)
    images = [image for path in arguments.image for image in read_images(path, **options)]
    # As VQADataset writes it, so that an answer is asked for as in training.
    text = f"{arguments.modality}: {arguments.question}" if arguments.modality else arguments.question or ""
    return Sample(turns=[Turn("user", text)], images=images, source="--question")


def questions(arguments: argparse.Namespace) -> Any:
    """The rows of `--batch` as a dataset."""
    from mllm.predict.questions import Questions

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
    from mllm.report.drawing import draw_answer

    files = draw_answer(sample.images, answer.marks, Path(arguments.draw))
    said = f"drawn: {', '.join(map(str, files))}" if files else "the answer names no place: nothing was drawn"
    logger.info("%s", said)


if __name__ == "__main__":
    sys.exit(run_command(main))
