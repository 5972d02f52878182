"""Frames of AVI, MP4, MOV and MKV files, by exact index."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mllm.dataset.readers.gray import Choice, choose
from mllm.errors import ConfigError, DataError
from mllm.registry import READERS

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

_SEEKABLE = frozenset({"mjpeg", "mpeg4", "h264", "hevc", "ffv1", "rawvideo", "png", "huffyuv", "ffvhuff"})
"""Codecs of which every packet is one frame, so that frames can be counted without decoding them."""


@READERS.register_module(name=[".avi", ".mp4", ".mov", ".mkv"])
def read(path: Path, *, frames: Choice = "first") -> list[Image.Image]:
    """Read frames of a video as RGB pictures, in the order asked.

    `frames` counts the frames that a decoder shows, from 0: an index, a list, 'first', 'middle', 'last' or 'all'. The
    number of frames in the file's header is never believed. Each frame is found by its time: the keyframe before it
    is looked up in the packets, and decoding runs from there; where the packets of a file do not tell (codecs with
    hidden frames, times that are missing or out of order), it is decoded from the beginning. Either way the frames
    are those of decoding everything, and memory holds those that were asked for. A turned display is left as stored.
    """
    try:
        import av
    except ImportError:
        raise ConfigError(f"{path} is a video, for which PyAV is missing: pip install -e .[video]") from None
    try:
        timeline = _read_timeline(path)
        if timeline is not None:
            indices = choose(frames, len(timeline), path, "frames", "frame")
            found = _seek_and_decode(path, timeline, indices)
            if found is not None:
                return [found[index] for index in indices]
        count = sum(1 for _ in _decode(path))
        if count == 0:
            raise DataError(f"{path} has no frame that can be decoded")
        indices = choose(frames, count, path, "frames", "frame")
        found = _decode_until(path, indices)
        return [found[index] for index in indices]
    except av.error.FFmpegError as error:
        raise DataError(f"{path} is not a video or is damaged: {error.strerror}") from error


class _Timeline:
    """The times at which the frames of a video are shown, in order, and which of them decoding can begin at."""

    def __init__(self, times: Sequence[int], keys: Sequence[int]) -> None:
        self.times = sorted(times)
        beginnings = set(keys)
        self._keys = [number for number, time in enumerate(self.times) if time in beginnings]

    def __len__(self) -> int:
        return len(self.times)

    def key_before(self, number: int) -> int:
        """The number of the last keyframe that is shown before frame `number` or is that frame."""
        return self._keys[bisect_right(self._keys, number) - 1]


def _open(path: Path) -> InputContainer:
    import av

    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise DataError(f"{path} has no video in it")
    return container


def _read_timeline(path: Path) -> _Timeline | None:
    """The timeline of the packets, which are read and not decoded; None where they do not tell it."""
    times, keys = [], []
    with _open(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name not in _SEEKABLE:
            return None
        for packet in container.demux(stream):
            if packet.size == 0 and packet.dts is None:
                # The sign for a decoder to give out what it still holds.
                continue
            if packet.size == 0 or packet.pts is None or packet.is_discard or packet.is_corrupt:
                return None
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    told = bool(keys) and len(set(times)) == len(times) and min(keys) == min(times)
    return _Timeline(times, keys) if told else None


def _seek_and_decode(path: Path, timeline: _Timeline, indices: Sequence[int]) -> dict[int, Image.Image] | None:
    """The frames at `indices`; None where the file's frames do not follow its timeline."""
    found: dict[int, Image.Image] = {}
    numbers = {time: number for number, time in enumerate(timeline.times)}
    wanted = deque(sorted(set(indices)))
    with _open(path) as container:
        stream = container.streams.video[0]
        while wanted:
            key = timeline.key_before(wanted[0])
            container.seek(timeline.times[key], stream=stream, backward=True, any_frame=False)
            expected = None
            for frame in container.decode(stream):
                number = numbers.get(frame.pts)
                if number is None or number > wanted[0] or number > (key if expected is None else expected):
                    return None
                if expected is not None and number < expected:
                    return None
                expected = number + 1
                if number == wanted[0]:
                    found[wanted.popleft()] = frame.to_image()
                    if not wanted or timeline.key_before(wanted[0]) > expected:
                        break
            else:
                return None
    return found


def _decode(path: Path) -> Iterator[VideoFrame]:
    """All frames, up to the place where the file is cut off."""
    with _open(path) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            # A decoder fills what is missing of a frame with gray; None asks for the whole frames that it still holds.
            yield from stream.codec_context.decode(None if packet.is_corrupt else packet)
            if packet.is_corrupt:
                return


def _decode_until(path: Path, indices: Sequence[int]) -> dict[int, Image.Image]:
    """The frames at `indices`, by decoding from the first to the last of them."""
    last = max(indices)
    found = {}
    for number, frame in enumerate(_decode(path)):
        if number in indices:
            found[number] = frame.to_image()
        if number == last:
            break
    return found
