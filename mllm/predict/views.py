"""Named views for a model that measures: frames of a video or a DICOM cine, or one file each."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
        pairs = [part.split("=") for part in text.split(",")]
        frames = {name.strip(): int(number) for name, number in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' does not say which frames: write ED=46,ES=61") from error
    if len(frames) < len(pairs):
        raise argparse.ArgumentTypeError(f"'{text}' names a view twice")
    return frames


def _view(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"'{text}' does not say a view and its file: write ED=ed.png")
    return name, path


def views_sample(arguments: argparse.Namespace, args: ModelArgs, reader: Mapping[str, Any] | None = None) -> Sample:
    """The views that the model reads; `reader` holds options of the files' readers, such as a window.

    Raises `ConfigError` where a view is not named, is named twice, or is none of the model's.
    """
    from mllm.dataset.readers import read_images

    wanted = tuple(args.heads["measures"].get("views", VIEWS))
    if not arguments.video and not arguments.view:
        raise ConfigError(
            f"this model measures the views {' and '.join(wanted)} and answers no question: give --video FILE with "
            f"--frames {_example(wanted)}, or each view's file with --view {wanted[0]}=FILE"
        )
    options = dict(reader or {})
    if arguments.video:
        if arguments.view:
            raise ConfigError("--video with --frames and --view FILES are two ways to say the same: give one of them")
        frames = arguments.named_frames or {}
        _refuse_absent(wanted, frames, arguments.video)
        _refuse_strange("--frames", frames, wanted)
        _refuse_one_frame(wanted, frames, arguments.video)
        images = read_images(Path(arguments.video), **{**options, "frames": [frames[view] for view in wanted]})
    else:
        if arguments.named_frames:
            raise ConfigError("--frames belongs to --video; a --view is a file of its own")
        files = dict(arguments.view)
        names = [view for view, _ in arguments.view]
        if len(files) < len(names):
            raise ConfigError(f"--view {max(names, key=names.count)} is given twice: give each view once")
        missing = [view for view in wanted if view not in files]
        if missing:
            raise ConfigError(f"the view {missing[0]} is not given: add --view {missing[0]}=FILE")
        _refuse_strange("--view", files, wanted)
        images = [image for view in wanted for image in read_images(Path(files[view]), **options)[:1]]
    return Sample([Turn("user", "")], images=images, views=list(wanted), source=arguments.video or "--view")


def _refuse_absent(wanted: Sequence[str], frames: dict[str, int], video: str) -> None:
    """Refuses a video of which it is not said which frame is which view."""
    missing = [view for view in wanted if view not in frames]
    if missing:
        raise ConfigError(
            f"{video}: which frame is {' and which is '.join(missing)} is not said, and no file tells it reliably: add "
            f"--frames {_example(wanted)} with their numbers, counted from 0"
        )


def _refuse_strange(option: str, named: Iterable[str], wanted: Sequence[str]) -> None:
    """Refuses a view that the model does not read."""
    strange = [view for view in named if view not in wanted]
    if strange:
        raise ConfigError(f"{option} names '{strange[0]}', and the model reads {', '.join(wanted)}: remove it")


def _refuse_one_frame(wanted: Sequence[str], frames: Mapping[str, int], video: str) -> None:
    """Refuses one frame for two views, as the datasets do: a heart is not at two moments at once."""
    for number, view in enumerate(wanted):
        for other in wanted[:number]:
            if frames[view] == frames[other]:
                raise ConfigError(f"{video}: {other} and {view} are both frame {frames[view]}: give each its own")


def _example(wanted: Sequence[str]) -> str:
    return ",".join(f"{view}=NUMBER" for view in wanted)
