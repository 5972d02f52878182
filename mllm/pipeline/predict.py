"""Command `mllm predict`: answer questions with a trained adapter, a merged model or a base model.

python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --image scan.dcm --question "What is shown?"
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --image scan.dcm --question "Where?" --draw scan.png
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --batch questions.jsonl --out answers.jsonl
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --chat --temperature 0.8 --top-p 0.9
python mllm/pipeline/predict.py --adapter exp/X/latest/adapter --video echo.avi --frames ED=46,ES=61
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import command_parser, quiet_progress, run_command
from mllm.pipeline.options import (
    add_generation_options,
    add_model_options,
    add_view_options,
    check_model_options,
    generation_options,
)

if TYPE_CHECKING:
    from mllm.predict.predict import PredictOptions

READER_OPTIONS = ("frames", "slice", "axis", "volume", "page", "window")
"""Options of the command line that are passed to `read_images`."""
MODEL_KEYS = ("type", "system", "load_in_4bit", "load_in_8bit")
"""Options of the command line that replace keys of `model_args`."""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    quiet_progress()
    from mllm.predict.predict import predict

    predict(predict_options(args))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; invalid combinations of options exit with an argparse error."""
    parser = command_parser("predict", "Answer questions, with or without images.")
    add_model_options(parser)
    parser.add_argument("--type", help="model type, if the folder does not name it (medgemma, causal-lm)")
    parser.add_argument("--load-in-4bit", action="store_true", default=None, help="store the base's weights in 4 bits")
    parser.add_argument("--load-in-8bit", action="store_true", default=None, help="store the base's weights in 8 bits")
    _add_input_options(parser)
    _add_reader_options(parser)
    add_view_options(parser)
    add_generation_options(parser)
    args = parser.parse_args(argv)
    _check(parser, args)
    args.generation = generation_options(parser, args)
    return args


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name questions, images and output files."""
    group = parser.add_argument_group("input and output")
    group.add_argument("--image", action="append", default=[], help="an image file (PNG, DICOM ...); may be repeated")
    group.add_argument("--question", help="the question; <image> marks the position of an image")
    group.add_argument("--modality", help="text before the question, as in the training dataset")
    group.add_argument("--chat", action="store_true", help="start a conversation; each line is a question")
    group.add_argument("--batch", help="a jsonl, json or csv file of rows with image (a path or a list) and question")
    group.add_argument("--out", help="output file of --batch (jsonl)")
    group.add_argument("--draw", help="a PNG file for predicted boxes and masks; for --batch a folder, with true ones")
    group.add_argument("--image-folder", help="folder of the images of --batch (default: the folder of the file)")
    group.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="action for a bad row of --batch")
    group.add_argument("--system", help="system message, instead of the one used in training")


def _add_reader_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the image readers."""
    group = parser.add_argument_group("image readers")
    group.add_argument(
        "--frame", dest="frames", action="append", type=_index_or_word, help="frame of a DICOM file or video, from 0"
    )
    group.add_argument(
        "--slice",
        action="append",
        type=_index_or_word,
        help="slice of a volume (NIfTI, MHA, NRRD, or a folder of DICOM slices), from 0",
    )
    group.add_argument("--axis", help="axis of a volume: axial, coronal, sagittal")
    group.add_argument("--volume", type=int, help="volume of a 4D file, from 0")
    group.add_argument("--page", action="append", type=_index_or_word, help="page of a TIFF file, from 0")
    group.add_argument(
        "--window",
        type=_window,
        help="a window: lung, or --window=-600,1500, or for the color channels lung,bone,brain",
    )


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an argparse error for options that exclude or require each other."""
    check_model_options(parser, args)
    views = bool(args.video or args.view)
    if (args.question is not None) + (args.batch is not None) + args.chat + views != 1:
        parser.error("set one of --question (with --image), --batch FILE (with --out FILE), --chat and --video FILE")
    if (args.batch is None) != (args.out is None):
        parser.error("--batch and --out require each other")
    if args.batch and args.image:
        parser.error("--image requires --question or --chat; with --batch each row names its images")
    if args.question is not None and not args.question.strip():
        parser.error("--question is empty")
    if views and (args.image or args.frames):
        parser.error("--image and --frame require --question; use --video or --view for a model that predicts measures")
    if args.view_frames and not views:
        parser.error("--frames requires --video; use --frame for a frame of an --image")
    if args.load_in_4bit and args.load_in_8bit:
        parser.error("--load-in-4bit and --load-in-8bit exclude each other")
    if args.draw and not (args.image or args.batch):
        parser.error("--draw requires --image or --batch")
    if args.chat and (args.draw or args.modality):
        parser.error("--draw and --modality require --question or --batch")


def _index_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _window(text: str) -> str | list[float] | list[str]:
    """Return the option `window` of the readers: a name, (center, width), or three names for the color channels."""
    parts = text.split(",")
    if len(parts) == 1 or len(parts) == 3:
        return text if len(parts) == 1 else parts
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a window name nor CENTER,WIDTH") from error


def reader_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `read_images` that are set; a list with one element becomes that element."""
    options = {}
    for name in READER_OPTIONS:
        value = vars(args)[name]
        if value is not None:
            options[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    return options


def predict_options(args: argparse.Namespace) -> PredictOptions:
    """Return the options of `mllm.predict.predict` for a parsed command line."""
    from mllm.predict.predict import PredictOptions
    from mllm.predict.views import ViewInputs

    return PredictOptions(
        adapter=args.adapter,
        model=args.model,
        base=args.base,
        model_args={key: vars(args)[key] for key in MODEL_KEYS},
        question=args.question,
        images=args.image,
        modality=args.modality,
        chat=args.chat,
        batch=args.batch,
        out=args.out,
        image_folder=args.image_folder,
        on_error=args.on_error,
        views=ViewInputs(args.video, args.view_frames or {}, args.view),
        reader=reader_options(args),
        draw=args.draw,
        generation=args.generation,
        batch_size=args.batch_size,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
