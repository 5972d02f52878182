"""Named views for a model that predicts measures: frames of one video or DICOM cine, or one file per view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.config.schema import ModelArgs
from mllm.dataset.readers import read_images
from mllm.errors import ConfigError
from mllm.structures import Sample, Turn

DEFAULT_VIEWS = ("ED", "ES")
"""Views of a RegressionHead whose config names none: end-diastole and end-systole."""


@dataclass(frozen=True)
class ViewInputs:
    """Files that hold the views of one sample."""

    video: str | None = None
    """A video or a DICOM cine."""
    frames: Mapping[str, int] = field(default_factory=dict)
    """View -> frame of `video`, from 0."""
    files: Sequence[tuple[str, str]] = ()
    """Pairs of view and image file, an alternative to `video`."""

    def __bool__(self) -> bool:
        return bool(self.video or self.files)


def views_sample(inputs: ViewInputs, args: ModelArgs, reader: Mapping[str, Any] | None = None) -> Sample:
    """Return a sample with the views that the model reads.

    `reader` holds options of the image readers, such as `window`. Raises `ConfigError` if a view of the model is
    missing, is named twice, or does not belong to the model.
    """
    assert args.heads is not None
    views = tuple(args.heads["measures"].get("views", DEFAULT_VIEWS))
    if not inputs:
        raise ConfigError(
            f"this model predicts measures from the views {' and '.join(views)} and does not answer questions: use "
            f"--video FILE with --frames {_example(views)}, or one --view {views[0]}=FILE per view"
        )
    if inputs.video:
        images = _read_frames(inputs, inputs.video, views, reader or {})
    else:
        images = _read_files(inputs, views, reader or {})
    return Sample([Turn("user", "")], images=images, views=list(views), source=inputs.video or "--view")


def _read_frames(inputs: ViewInputs, video: str, views: Sequence[str], reader: Mapping[str, Any]) -> list[Any]:
    """Return the frames of a video in the order of `views`."""
    if inputs.files:
        raise ConfigError("--video and --view exclude each other: use --video with --frames, or one --view per view")
    _check_frames_present(views, inputs.frames, video)
    _check_view_names("--frames", inputs.frames, views)
    _check_frames_differ(views, inputs.frames, video)
    return read_images(Path(video), **{**reader, "frames": [inputs.frames[view] for view in views]})


def _read_files(inputs: ViewInputs, views: Sequence[str], reader: Mapping[str, Any]) -> list[Any]:
    """Return the first image of each view's file, in the order of `views`."""
    if inputs.frames:
        raise ConfigError("--frames requires --video; with --view each view has a file")
    files = dict(inputs.files)
    names = [view for view, _ in inputs.files]
    if len(files) < len(names):
        raise ConfigError(f"--view {max(names, key=names.count)} is set twice: use each view once")
    missing = [view for view in views if view not in files]
    if missing:
        raise ConfigError(f"the view {missing[0]} is missing: add --view {missing[0]}=FILE")
    _check_view_names("--view", files, views)
    return [image for view in views for image in read_images(Path(files[view]), **reader)[:1]]


def _check_frames_present(views: Sequence[str], frames: Mapping[str, int], video: str) -> None:
    """Raise `ConfigError` if a view has no frame."""
    missing = [view for view in views if view not in frames]
    if missing:
        raise ConfigError(
            f"{video}: no frame number for {' and '.join(missing)}: add --frames {_example(views)} with frame numbers "
            f"from 0"
        )


def _check_view_names(option: str, names: Iterable[str], views: Sequence[str]) -> None:
    """Raise `ConfigError` for a view that the model does not read."""
    unknown = [view for view in names if view not in views]
    if unknown:
        raise ConfigError(f"{option} names '{unknown[0]}', but the model reads {', '.join(views)}: remove it")


def _check_frames_differ(views: Sequence[str], frames: Mapping[str, int], video: str) -> None:
    """Raise `ConfigError` if two views have the same frame, as the datasets do."""
    for number, view in enumerate(views):
        for other in views[:number]:
            if frames[view] == frames[other]:
                raise ConfigError(f"{video}: {other} and {view} are both frame {frames[view]}: use different frames")


def _example(views: Sequence[str]) -> str:
    return ",".join(f"{view}=NUMBER" for view in views)
