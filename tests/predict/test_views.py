"""Views named on the command line: the right frames by any order, and what is missing is said."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from medical_files import write_avi, write_dicom
from PIL import Image

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError, UserError
from mllm.predict.views import add_views, views_sample

HEADS = dict(measures=dict(type="RegressionHead", views=["ED", "ES"]))
ARGS = ModelArgs("medsiglip", "a/b", part="vision", heads=HEADS)


def _sample(*arguments: str):
    parser = argparse.ArgumentParser()
    add_views(parser)
    return views_sample(parser.parse_args(arguments), ARGS)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cine as video and as DICOM whose frame n has the gray value 10 n, and a picture of 200."""
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
def test_frames_are_those_that_were_named(files, file: str, ed: int, es: int):
    assert _grays(_sample("--video", file, "--frames", f"ES={es}, ED={ed}")) == {"ED": ed, "ES": es}


def test_each_view_may_be_a_file_of_its_own(files):
    assert _grays(_sample("--view", "ES=es.png", "--view", "ED=es.png")) == {"ED": 20, "ES": 20}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            [],
            "measures the views ED and ES and answers no question: give --video FILE with --frames ED=NUMBER,ES=NUMBER",
        ),
        (["--video", "a.dcm"], "a.dcm: which frame is ED and which is ES is not said, and no file tells it reliably"),
        (["--video", "a.dcm", "--frames", "ED=3"], "a.dcm: which frame is ES is not said"),
        (["--video", "a.avi", "--frames", "ED=3,ES=4,EP=5"], "--frames names 'EP', and the model reads ED, ES"),
        (["--video", "a.avi", "--frames", "ED=3,ES=12"], "12"),
        (["--video", "b.avi", "--frames", "ED=3,ES=4"], "b.avi"),
        (["--view", "ED=es.png"], "the view ES is not given: add --view ES=FILE"),
        (["--video", "a.avi", "--frames", "ED=3,ES=3"], "a.avi: ED and ES are both frame 3"),
        (["--video", "a.avi", "--frames", "ED=3,ES=4", "--view", "ED=es.png"], "give one of them"),
        (["--view", "ED=es.png", "--view", "ES=es.png", "--view", "EP=es.png"], "--view names 'EP', and the model"),
        (["--view", "ED=es.png", "--view", "ED=es.png", "--view", "ES=es.png"], "--view ED is given twice"),
        (["--view", "ED=es.png", "--view", "ES=es.png", "--frames", "ED=3,ES=4"], "--frames belongs to --video"),
    ],
)
def test_what_is_missing_is_said(files, arguments: list[str], sentence: str):
    with pytest.raises(UserError) as error:
        _sample(*arguments)
    assert sentence in str(error.value)
    assert isinstance(error.value, ConfigError) or "avi" in str(error.value)


@pytest.mark.parametrize("wrong", ["ED", "ED=first", "ED=3;ES=4"])
def test_frames_that_cannot_be_read_show_how(wrong: str, capsys):
    with pytest.raises(SystemExit):
        _sample("--video", "a.avi", "--frames", wrong)
    assert "write ED=46,ES=61" in capsys.readouterr().err


def test_a_view_that_is_named_twice_is_not_chosen_in_silence(capsys):
    with pytest.raises(SystemExit):
        _sample("--video", "a.avi", "--frames", "ED=3,ED=5,ES=4")
    assert "'ED=3,ED=5,ES=4' names a view twice" in capsys.readouterr().err


def test_a_window_reaches_the_reader_and_a_slice_of_a_video_is_refused(files):
    parser = argparse.ArgumentParser()
    add_views(parser)
    arguments = parser.parse_args(["--video", "a.dcm", "--frames", "ED=7,ES=2"])
    windowed = views_sample(arguments, ARGS, {"window": [70.0, 2.0]})
    assert [int(np.asarray(image).max()) for image in windowed.images] != [70, 20], "as without a window"
    arguments = parser.parse_args(["--video", "a.avi", "--frames", "ED=7,ES=2"])
    with pytest.raises(UserError, match="slice"):
        views_sample(arguments, ARGS, {"slice": 3})
