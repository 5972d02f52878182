"""Reader of frames of AVI, MP4, MOV and MKV files by exact index."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mllm.dataset.readers.geometry import check_pixels, warn_of_form
from mllm.dataset.readers.gray import Choice, choose
from mllm.dataset.readers.guarded import call_guarded, is_installed, report_progress
from mllm.dataset.readers.pixel_limit import check_selected, pixel_limit
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

_SEEKABLE = frozenset({"mjpeg", "mpeg4", "h264", "hevc", "ffv1", "rawvideo", "png", "huffyuv", "ffvhuff"})
"""Codecs with one frame per packet, so that frames can be counted without decoding."""


@READERS.register_module(name=[".avi", ".mp4", ".mov", ".mkv"])
def read(path: Path, *, frames: Choice = "first") -> list[Image.Image]:
    """Read frames of a video as RGB images, in the order of `frames`.

    Frames are counted as decoded; the number of frames in the header is ignored. A frame is found by its time: decoding
    starts at the keyframe before it. If the packets do not determine the times (codecs with hidden frames, missing or
    repeated times), the video is decoded from the beginning. Both ways return the same frames, and only the selected
    frames are held in memory. A rotation of the display is not applied, and pixels that are not square are reported and
    kept. Videos are decoded in the guarded process.

    Args:
        path: The file.
        frames: Indices from 0: an index, a list, 'first', 'middle', 'last' or 'all'.
    """
    if not is_installed("av"):
        raise ConfigError(f"{path} is a video, but PyAV is not installed: pip install -e .[video]")
    return call_guarded(f"{__name__}:selected_frames", path, frames)


def selected_frames(path: Path, frames: Choice) -> Iterator[Image.Image]:
    """Yield frames of a video as RGB images; see `read`."""
    import av

    try:
        timeline = _read_timeline(path)
        selected = None
        if timeline is not None:
            indices = _choose(frames, len(timeline), path)
            selected = _seek_and_decode(path, timeline, indices)
        if selected is None:
            count = sum(1 for _ in _decode(path))
            if count == 0:
                raise DataError(f"{path} has no frame that can be decoded")
            indices = _choose(frames, count, path)
            selected = _decode_until(path, indices)
    except av.error.FFmpegError as error:
        raise DataError(f"{path} is not a video or is damaged: {error.strerror}") from error
    yield from (selected[index] for index in indices)


def _choose(frames: Choice, count: int, path: Path) -> list[int]:
    """Return the numbers of the selected frames. Raise `TooManyPixelsError` before they are decoded."""
    indices = choose(frames, count, path, "frames", "frame")
    if pixel_limit() is not None:
        with _open(path) as container:
            codec = container.streams.video[0].codec_context
            check_selected(path, len(indices), codec.width, codec.height)
    return indices


class _Timeline:
    """Sorted presentation times of the frames of a video, and its keyframes."""

    def __init__(self, times: Sequence[int], keys: Sequence[int]) -> None:
        self.times = sorted(times)
        key_times = set(keys)
        self._keys = [number for number, time in enumerate(self.times) if time in key_times]

    def __len__(self) -> int:
        return len(self.times)

    def key_before(self, number: int) -> int:
        """Return the number of the last keyframe that is not after frame `number`."""
        return self._keys[bisect_right(self._keys, number) - 1]


def _open(path: Path) -> InputContainer:
    import av

    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise DataError(f"{path} has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        container.close()
        raise DataError(f"{path} has a codec that is not supported, or its header is damaged")
    check_pixels(path, stream.codec_context.width, stream.codec_context.height)
    if (ratio := stream.sample_aspect_ratio) is not None:
        warn_of_form(path, float(ratio), 1.0)
    return container


def _read_timeline(path: Path) -> _Timeline | None:
    """Return the timeline of the packets, without decoding; None if the packets do not determine it."""
    times, keys = [], []
    with _open(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name not in _SEEKABLE:
            return None
        for packet in container.demux(stream):
            if packet.size == 0 and packet.dts is None:
                # Flush packet of the decoder.
                continue
            if packet.size == 0 or packet.pts is None or packet.is_discard or packet.is_corrupt:
                return None
            times.append(packet.pts)
            report_progress()
            if packet.is_keyframe:
                keys.append(packet.pts)
    is_complete = bool(keys) and len(set(times)) == len(times) and min(keys) == min(times)
    return _Timeline(times, keys) if is_complete else None


def _seek_and_decode(path: Path, timeline: _Timeline, indices: Sequence[int]) -> dict[int, Image.Image] | None:
    """Return the frames at `indices`; None if the decoded frames do not match the timeline, or are incomplete."""
    selected: dict[int, Image.Image] = {}
    numbers = {time: number for number, time in enumerate(timeline.times)}
    remaining = deque(sorted(set(indices)))
    with _open(path) as container:
        stream = container.streams.video[0]
        while remaining:
            key = timeline.key_before(remaining[0])
            container.seek(timeline.times[key], stream=stream, backward=True, any_frame=False)
            expected = None
            for frame in container.decode(stream):
                report_progress()
                number = numbers.get(frame.pts)
                if number is None or number > remaining[0] or number > (key if expected is None else expected):
                    return None
                if expected is not None and number < expected:
                    return None
                expected = number + 1
                if number == remaining[0]:
                    if frame.is_corrupt:
                        return None
                    selected[remaining.popleft()] = frame.to_image()
                    if not remaining or timeline.key_before(remaining[0]) > expected:
                        break
            else:
                return None
    return selected


def _decode(path: Path) -> Iterator[VideoFrame]:
    """Yield all frames, up to the position where the file is truncated."""
    with _open(path) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            report_progress()
            # A decoder fills the missing part of a frame with gray; None flushes the complete frames.
            yield from stream.codec_context.decode(None if packet.is_corrupt else packet)
            if packet.is_corrupt:
                return


def _decode_until(path: Path, indices: Sequence[int]) -> dict[int, Image.Image]:
    """Return the frames at `indices` by decoding from the beginning to the last of them."""
    last = max(indices)
    selected = {}
    for number, frame in enumerate(_decode(path)):
        if number in indices:
            if frame.is_corrupt:
                raise DataError(f"{path} is damaged: the decoder fills missing parts of frame {number}")
            selected[number] = frame.to_image()
        if number == last:
            break
    return selected
