"""Views named on the command line: frames in any order, and errors for missing and unknown views."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from medical_files import write_avi, write_dicom
from PIL import Image

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError, UserError
from mllm.pipeline.options import add_view_options
from mllm.predict.views import ViewInputs, views_sample
from mllm.structures import Sample

HEADS = dict(measures=dict(type="RegressionHead", views=["ED", "ES"]))
ARGS = ModelArgs("medsiglip", "a/b", part="vision", heads=HEADS)


def _inputs(*options: str) -> ViewInputs:
    parser = argparse.ArgumentParser()
    add_view_options(parser)
    args = parser.parse_args(options)
    return ViewInputs(args.video, args.view_frames or {}, args.view)


def _sample(*options: str, **reader) -> Sample:
    return views_sample(_inputs(*options), ARGS, reader)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cine as video and as DICOM whose frame n has the gray value 10 n, and an image with the value 200."""
    monkeypatch.chdir(tmp_path)
    frames = np.stack([np.full((32, 32), 10 * number, np.uint8) for number in range(12)])
    write_avi(Path("a.avi"), list(frames), "ffv1")
    write_dicom(Path("a.dcm"), frames, Modality="US", WindowCenter=128, WindowWidth=256, VOILUTFunction="LINEAR")
    Image.new("RGB", (32, 32), (200,) * 3).save("es.png")


def _grays(sample) -> dict[str, int]:
    return {
        view: round(float(np.asarray(image).mean()) / 10)
        for view, image in zip(sample.views, sample.images, strict=True)
    }


@pytest.mark.parametrize("file", ["a.avi", "a.dcm"])
@pytest.mark.parametrize("ed, es", [(7, 2), (0, 11), (11, 0)])
def test_frames_are_selected_by_view(files, file: str, ed: int, es: int):
    assert _grays(_sample("--video", file, "--frames", f"ES={es}, ED={ed}")) == {"ED": ed, "ES": es}


def test_each_view_can_be_an_image_file(files):
    assert _grays(_sample("--view", "ES=es.png", "--view", "ED=es.png")) == {"ED": 20, "ES": 20}


@pytest.mark.parametrize(
    "options, message",
    [
        (
            [],
            "predicts measures from the views ED and ES and does not answer questions: use --video FILE with --frames "
            "ED=NUMBER,ES=NUMBER, or one --view ED=FILE per view",
        ),
        (["--video", "a.dcm"], "a.dcm: no frame number for ED and ES: add --frames"),
        (["--video", "a.dcm", "--frames", "ED=3"], "a.dcm: no frame number for ES"),
        (["--video", "a.avi", "--frames", "ED=3,ES=4,EP=5"], "--frames names 'EP', but the model reads ED, ES"),
        (["--video", "a.avi", "--frames", "ED=3,ES=12"], "12"),
        (["--video", "b.avi", "--frames", "ED=3,ES=4"], "b.avi"),
        (["--view", "ED=es.png"], "the view ES is missing: add --view ES=FILE"),
        (["--video", "a.avi", "--frames", "ED=3,ES=3"], "a.avi: ED and ES are both frame 3"),
        (["--video", "a.avi", "--frames", "ED=3,ES=4", "--view", "ED=es.png"], "--video and --view exclude each other"),
        (["--view", "ED=es.png", "--view", "ES=es.png", "--view", "EP=es.png"], "--view names 'EP', but the model"),
        (["--view", "ED=es.png", "--view", "ED=es.png", "--view", "ES=es.png"], "--view ED is set twice"),
        (["--view", "ED=es.png", "--view", "ES=es.png", "--frames", "ED=3,ES=4"], "--frames requires --video"),
    ],
)
def test_missing_and_unknown_views_are_refused(files, options: list[str], message: str):
    with pytest.raises(UserError) as error:
        _sample(*options)
    assert message in str(error.value)
    assert isinstance(error.value, ConfigError) or "avi" in str(error.value)


@pytest.mark.parametrize("wrong", ["ED", "ED=first", "ED=3;ES=4"])
def test_invalid_frames_are_refused_with_an_example(wrong: str, capsys):
    with pytest.raises(SystemExit):
        _sample("--video", "a.avi", "--frames", wrong)
    assert "write ED=46,ES=61" in capsys.readouterr().err


def test_a_view_that_is_named_twice_is_refused(capsys):
    with pytest.raises(SystemExit):
        _sample("--video", "a.avi", "--frames", "ED=3,ED=5,ES=4")
    assert "'ED=3,ED=5,ES=4' names a view twice" in capsys.readouterr().err


def test_the_reader_applies_a_window_and_refuses_a_slice_of_a_video(files):
    windowed = _sample("--video", "a.dcm", "--frames", "ED=7,ES=2", window=[70.0, 2.0])
    assert [int(np.asarray(image).max()) for image in windowed.images] != [70, 20], "the window has no effect"
    with pytest.raises(UserError, match="slice"):
        _sample("--video", "a.avi", "--frames", "ED=7,ES=2", slice=3)
