"""Tests of the reader of videos."""

from __future__ import annotations

from multiprocessing.connection import Pipe

import av
import numpy as np
import pytest
from medical_files import write_avi

from mllm.dataset.readers import guarded, read_images, video
from mllm.errors import ConfigError, DataError

COUNT = 45
KINDS = [
    ("mjpeg.avi", "mjpeg", {}),
    ("mpeg4.avi", "mpeg4", {}),
    ("mpeg4_b.avi", "mpeg4", {"bf": "2"}),
    ("mpeg4_b.mp4", "mpeg4", {"bf": "2"}),
    ("ffv1.avi", "ffv1", {}),
    ("h264.mp4", "libx264", {"g": "12"}),
    ("h264_open.mkv", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    ("h264_open.mov", "libx264", {"x264-params": "open-gop=1:keyint=5:bframes=3"}),
    ("h264.avi", "libx264", {"g": "12"}),
    ("vp9.mkv", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "12"}),
]


def frames(count=COUNT, size=(48, 64)):
    """Return frames that encode their number by the position of a bright square on changing noise."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 90, (count, *size, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, 8)
        picture[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 255
    return list(pictures)


def number_of(picture):
    """Return the number that a frame encodes."""
    cells = np.asarray(picture)[..., 1].reshape(6, 8, 8, 8).mean(axis=(1, 3))
    return int(cells.argmax())


def decode_everything(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, codec, options in KINDS:
        write_avi(folder / name, frames(), codec, options=options)
    return folder


@pytest.mark.parametrize("name", [kind[0] for kind in KINDS])
def test_every_index_gives_the_frame_of_full_decoding(folder, name):
    oracle = decode_everything(folder / name)
    assert len(oracle) == COUNT
    for index in range(COUNT):
        (picture,) = read_images(folder / name, frames=index)
        assert number_of(picture) == index
        assert np.array_equal(np.asarray(picture), oracle[index])
    for choice in ([44, 0], [30, 7, 7, 31, 0], "all"):
        indices = range(COUNT) if choice == "all" else choice
        pictures = read_images(folder / name, frames=choice)
        assert [number_of(picture) for picture in pictures] == list(indices)
        assert all(np.array_equal(picture, oracle[index]) for picture, index in zip(pictures, indices, strict=True))
    assert number_of(read_images(folder / name)[0]) == 0
    assert number_of(read_images(folder / name, frames="middle")[0]) == COUNT // 2
    assert number_of(read_images(folder / name, frames="last")[0]) == COUNT - 1


def test_files_that_are_not_decoded_from_the_beginning(folder, monkeypatch):
    def refuse(path, *further):
        raise AssertionError(f"{path} was decoded from the beginning")

    monkeypatch.setattr(video, "_decode", refuse)
    for name in ("mjpeg.avi", "mpeg4.avi", "mpeg4_b.mp4", "ffv1.avi", "h264.mp4", "h264_open.mkv"):
        assert [number_of(image) for image in video.selected_frames(folder / name, 40)] == [40]


@pytest.mark.parametrize("name", ["h264.mp4", "h264.avi", "vp9.mkv"])
def test_each_decoded_frame_starts_the_time_limit_again(folder, name, monkeypatch):
    caller, process = Pipe()
    monkeypatch.setattr(guarded, "_to_caller", process)
    monkeypatch.setattr(guarded, "_PROGRESS_SECONDS", 0.0)
    list(video.selected_frames(folder / name, "all"))
    count = 0
    while caller.poll():
        assert caller.recv() == ("progress", None)
        count += 1
    assert count >= 2 * COUNT  # frames are counted first, then decoded


def test_the_count_in_the_header_is_ignored(folder, tmp_path):
    contents = bytearray((folder / "mjpeg.avi").read_bytes())
    for box in (b"avih", b"strh"):
        at = contents.index(box) + 8 + (16 if box == b"avih" else 32)
        assert int.from_bytes(contents[at : at + 4], "little") == COUNT
        contents[at : at + 4] = (1000).to_bytes(4, "little")
    path = tmp_path / "count.avi"
    path.write_bytes(contents)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 1000
    assert number_of(read_images(path, frames="last")[0]) == COUNT - 1
    with pytest.raises(DataError, match=rf"count.avi has no frame {COUNT}: it has {COUNT}, from 0 to {COUNT - 1}"):
        read_images(path, frames=COUNT)


@pytest.mark.parametrize("name", ["mjpeg.avi", "mpeg4.avi", "ffv1.avi"])
def test_a_truncated_video_ends_at_its_last_complete_frame(folder, tmp_path, name):
    whole = (folder / name).read_bytes()
    oracle = decode_everything(folder / name)
    path = tmp_path / name
    begin, end = whole.index(b"movi"), whole.index(b"idx1")
    path.write_bytes(whole[: begin + (end - begin) * 85 // 100])
    pictures = read_images(path, frames="all")
    assert 5 < len(pictures) < COUNT
    assert all(np.array_equal(picture, oracle[index]) for index, picture in enumerate(pictures))
    with pytest.raises(DataError, match=rf"has no frame 44: it has {len(pictures)}"):
        read_images(path, frames=44)


def test_gray_video(tmp_path):
    pictures = [np.full((16, 16), 5 * number, np.uint8) for number in range(10)]
    path = write_avi(tmp_path / "a.avi", pictures, "ffv1")
    actual = read_images(path, frames=[9, 2])
    assert [np.asarray(picture)[0, 0].tolist() for picture in actual] == [[45] * 3, [10] * 3]


def test_a_file_without_a_video_stream(tmp_path):
    path = tmp_path / "voice.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(DataError, match=r"voice.mkv has no video stream"):
        read_images(path)


def test_invalid_indices(folder):
    with pytest.raises(DataError, match=r"mjpeg.avi has no frame -1: it has 45"):
        read_images(folder / "mjpeg.avi", frames=-1)
    with pytest.raises(ConfigError, match="frames=1.5"):
        read_images(folder / "mjpeg.avi", frames=1.5)
