"""Named views for a model that measures: frames of a video or a DICOM cine, or one file each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.structures import Sample, Turn

VIEWS = ("ED", "ES")
"""What a RegressionHead reads where its config names no views."""


def add_views(parser: argparse.ArgumentParser) -> None:
    """The options that name views."""
    group = parser.add_argument_group("what is measured, by a model with part='vision'")
    group.add_argument("--video", help="an echocardiogram: a video or a DICOM cine")
    group.add_argument("--frames", dest="named_frames", type=_frames, help="its frames by view, from 0: ED=46,ES=61")
    group.add_argument("--view", type=_view, action="append", default=[], help="a view's own file: ED=ed.png")


def _frames(text: str) -> dict[str, int]:
    try:
        pairs = dict(part.split("=") for part in text.split(","))
        return {name.strip(): int(number) for name, number in pairs.items()}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' does not say which frames: write ED=46,ES=61") from error


def _view(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"'{text}' does not say a view and its file: write ED=ed.png")
    return name, path


def views_sample(arguments: argparse.Namespace, args: ModelArgs) -> Sample:
    """The views that the model reads; raises `ConfigError` where one is not named."""
    from mllm.dataset.readers import read_images

    wanted = tuple(args.heads["measures"].get("views", VIEWS))
    if not arguments.video and not arguments.view:
        raise ConfigError(
            f"this model measures the views {' and '.join(wanted)} and answers no question: give --video FILE with "
            f"--frames {_example(wanted)}, or each view's file with --view {wanted[0]}=FILE"
        )
    if arguments.video:
        frames = arguments.named_frames or {}
        _refuse_absent(wanted, frames, arguments.video)
        images = read_images(Path(arguments.video), frames=[frames[view] for view in wanted])
    else:
        files = dict(arguments.view)
        missing = [view for view in wanted if view not in files]
        if missing:
            raise ConfigError(f"the view {missing[0]} is not given: add --view {missing[0]}=FILE")
        images = [image for view in wanted for image in read_images(Path(files[view]))[:1]]
    return Sample([Turn("user", "")], images=images, views=list(wanted), source=arguments.video or "--view")


def _refuse_absent(wanted: Sequence[str], frames: dict[str, int], video: str) -> None:
    """Refuses a video of which it is not said which frame is which view."""
    missing = [view for view in wanted if view not in frames]
    if missing:
        raise ConfigError(
            f"{video}: which frame is {' and which is '.join(missing)} is not said, and no file tells it reliably: add "
            f"--frames {_example(wanted)} with their numbers, counted from 0"
        )
    strange = [view for view in frames if view not in wanted]
    if strange:
        raise ConfigError(f"--frames names '{strange[0]}', and the model reads {', '.join(wanted)}: remove it")


def _example(wanted: Sequence[str]) -> str:
    return ",".join(f"{view}=NUMBER" for view in wanted)
