"""Events of the page: conversations with a model, files of a session, and sentences for mistakes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from medical_files import write_avi, write_series
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[serve]'")

import gradio as gr

from mllm import load
from mllm.dataset.readers import read_images
from mllm.errors import DataError
from mllm.predict.loaded_model import LoadedModel
from mllm.ui.conversation import Conversation, Shown
from mllm.ui.corrections import Corrections
from mllm.ui.events import OWN, Events
from mllm.ui.session import Session, Sessions

FEW = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def model(generating_adapter) -> LoadedModel:
    return load(adapters={"first": generating_adapter, "second": generating_adapter})


@pytest.fixture
def events(model, tmp_path) -> Events:
    sessions = Sessions(tmp_path / "sessions")
    return Events(model, frozenset({"first"}), sessions, Corrections(tmp_path / "corrections"), "/report")


def person(name: str = "a") -> SimpleNamespace:
    """Return the part of a request of Gradio that the events read."""
    return SimpleNamespace(session_hash=name)


def dropped(folder: Path, *names: str) -> list[str]:
    """Write images as Gradio stores uploads, and return their paths."""
    paths = []
    for number, name in enumerate(names):
        path = folder / f"upload{number}" / name
        path.parent.mkdir(parents=True)
        noise = np.random.default_rng(number).integers(0, 256, (60, 80), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        paths.append(str(path))
    return paths


def test_each_model_has_a_conversation_of_its_own(model, pictures):
    images = [Image.open(pictures / f"{number}.png") for number in range(2)]
    first, second = (Shown(image, "a.png", number) for number, image in enumerate(images))
    talk = Conversation()
    for question, shown in (("What is this?", first), ("Why?", first), ("And <image> here?", second)):
        list(talk.ask(model, ["first", "second"], question, shown, lambda: False, **FEW))
    answer = model.ask(images[0], "What is this?", model="second", **FEW)
    why = model.ask(None, "Why?", after=answer, model="second", **FEW)
    here = model.ask(images[1], "And   here?", after=why, model="second", **FEW)
    assert [exchange.answers["second"].text for exchange in talk.exchanges] == [answer.text, why.text, here.text]
    assert here.text != model.ask(images[1], "And   here?", model="second", **FEW).text, "the history has no effect"
    assert [len(exchange.new) for exchange in talk.exchanges] == [1, 0, 1]
    assert [len(exchange.pictures) for exchange in talk.exchanges] == [1, 1, 2]


def test_a_question_an_answer_and_a_correction(events, tmp_path):
    (path,) = dropped(tmp_path, "scan.png")
    picture, *_, talk, message = events.open([path], person())
    assert "scan.png" in picture and not talk and not message
    assert not Path(path).exists(), "the file is moved into the folder of the session"
    first, *_, (talk, writing, message, *_, stop) = events.ask("Is it <b>large</b>?", ["first"], 4, " CT ", person())
    assert not message and not writing and "Is it &lt;b&gt;large&lt;/b&gt;?" in talk
    assert first[3] == "" and (first[-1]["visible"], stop["visible"]) == (True, False)
    state, kept = events.keep(" ", "", person())
    assert "needs the right answer" in state and kept == " "
    state, kept = events.keep("No.", "A17", person())
    assert "has 1 row" in state and not kept
    row = json.loads(events.corrections.table.read_text())
    assert (row["modality"], row["patient"]) == ("CT", "A17")
    assert "ask one first" in events.keep("No.", "", person("b"))[0], "sessions are separate"
    events.leave(person())
    assert not any(file.is_file() for file in events.sessions.folder.rglob("*")) and len(events.sessions) == 1


@pytest.mark.parametrize(
    "question, models, reason",
    [
        ("What is seen?", ["first"], "the model first answers questions about images: drop one first"),
        (" ", ["second"], "the question is empty"),
        ("What?", [], "no model is selected"),
        ("What <end_of_turn> is it?", ["second"], "end_of_turn"),
    ],
)
def test_a_question_that_cannot_be_answered_is_kept_in_its_field(events, question, models, reason):
    *_, (talk, _, message, field, *_) = events.ask(question, models, 4, "", person())
    assert reason in message and field == question and "article" not in talk


def test_an_unreadable_file_is_named_and_removed(events, tmp_path):
    path = tmp_path / "upload" / "scan.dcm"
    path.parent.mkdir()
    path.write_bytes(b"no picture at all" * 30)
    picture, *_, message = events.open([str(path)], person())
    assert not picture and "scan.dcm" in message and str(tmp_path) not in message
    assert not any(file.is_file() for file in events.sessions.folder.rglob("*"))


def test_no_dropped_file_stays_where_it_was_uploaded(tmp_path, monkeypatch):
    """A directory file has names of patients. Gradio stores two equal files of one name as one."""
    files = write_series(tmp_path / "study")
    directory, text = tmp_path / "study" / "DICOMDIR", tmp_path / "study" / "README.txt"
    directory.write_bytes(files[0].read_bytes())
    text.write_text("a viewer")
    session = Session(tmp_path / "session")
    session.open([str(file) for file in (*files, files[0], directory, text)], 10**6, only_dicom=True)
    assert session.study.count == 4 and not list((tmp_path / "study").iterdir())
    assert len([path for path in session.folder.rglob("*") if path.is_file()]) == 4

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("mllm.ui.session.open_study", fail)
    with pytest.raises(RuntimeError):
        session.open(dropped(tmp_path, "scan.png"), 10**6)
    assert not any(path.is_file() for folder in ("upload0", "session") for path in (tmp_path / folder).rglob("*"))


def test_a_folder_without_dicom_files_is_named(tmp_path):
    session = Session(tmp_path / "session")
    with pytest.raises(DataError, match="the folder has no DICOM files: drop a picture or a video as a file"):
        session.open(dropped(tmp_path, "a.png", "b.png"), 10**6, only_dicom=True)
    assert not any(
        path.is_file() for folder in ("upload0", "upload1", "session") for path in (tmp_path / folder).rglob("*")
    )


def test_an_archive_can_have_the_name_of_its_file(tmp_path):
    (file,) = write_series(tmp_path / "study", count=1)
    with zipfile.ZipFile(tmp_path / "scan", "w") as archive:
        archive.write(file, "scan")
    session = Session(tmp_path / "session")
    session.open([str(tmp_path / "scan")], 10**6)
    assert session.shown().image.tobytes() == read_images(file)[0].tobytes()


def test_windows_change_the_picture_that_is_asked_about(events, tmp_path):
    events.open(dropped(tmp_path, "scan.png"), person())
    before = events.sessions.of("a").shown()
    events.choose_window("percentiles", person())
    *_, center, width, message = events.choose_window(OWN, person())
    assert center["visible"] and width["maximum"] > 200 and not message
    events.own_window(100.0, 20.0, person())
    after = events.sessions.of("a").shown()
    gray = np.asarray(before.image)[..., 0].astype(float)
    expected = np.rint(np.clip((gray - 90) / 20, 0, 1) * 255)
    assert np.abs(np.asarray(after.image)[..., 0] - expected).max() <= 1 and after.key != before.key


def test_a_report_of_a_folder_without_a_run_is_refused(events, tmp_path):
    assert "no run is selected" in events.show_report("")
    assert "does not exist" in events.show_report(str(tmp_path / "none"))
    assert "iframe" not in events.show_report(str(tmp_path))


def test_a_new_conversation_ends_the_answer_of_the_former_one(events, tmp_path):
    events.open(dropped(tmp_path, "scan.png"), person())
    list(events.ask("What?", ["first"], 4, "", person()))
    former = events.sessions.of("a").conversation
    steps = events.ask("Why?", ["first"], 2000, "", person())
    next(steps)
    events.restart(person())
    *_, (talk, _, message, *_) = steps
    assert not talk and not message, "the new conversation is empty"
    assert len(former.exchanges) == 1 or former.exchanges[1].answers["first"].tokens < 20
    *_, (talk, *_) = events.ask("Where?", ["first"], 4, "", person())
    assert talk.count("<article") == 1


def test_an_answer_appears_while_it_is_written_and_stop_keeps_its_beginning(events, monkeypatch, tmp_path):
    monkeypatch.setattr("mllm.ui.events.PACE", 0.0)
    events.open(dropped(tmp_path, "scan.png"), person())
    shown = []
    for state in events.ask("What?", ["first", "second"], 1500, "", person()):
        shown.append(state[1])
        if len(set(shown)) == 4:
            events.stop(person())
    exchange = events.sessions.of("a").conversation.exchanges[-1]
    first, second = exchange.answers["first"], exchange.answers["second"]
    assert shown[0].count("<section") == 2 and shown[-1] == "" and "The answer was stopped." in state[0]
    assert (first.end, second.end) == ("cancelled", "cancelled") and 1 < first.tokens < 1500 and second.tokens <= 1


def test_after_a_stop_no_model_is_asked_and_an_empty_answer_is_no_turn(model, pictures):
    asked, stopped = [], Event()

    def stream(*inputs: Any, **options: Any) -> Any:
        asked.append(options["model"])
        return (yield from model.stream(*inputs, **options))

    asker, talk = SimpleNamespace(names=model.names, stream=stream), Conversation()
    image = Image.open(pictures / "0.png")
    shown = Shown(image, "a.png", 0)
    for exchange in talk.ask(asker, ["first", "second"], "What is this?", shown, stopped.is_set, **FEW):
        if "first" in exchange.answers:
            stopped.set()
    second = talk.exchanges[0].answers["second"]
    assert asked == ["first"] and (second.text, second.end) == ("", "cancelled")
    list(talk.ask(asker, ["first", "second"], "Why?", shown, lambda: False, **FEW))
    first, second = (talk.exchanges[1].answers[name] for name in ("first", "second"))
    assert second.text == model.ask(image, "Why?", model="second", **FEW).text and len(second.images) == 1
    assert [turn.role for turn in first.question.turns] == ["user", "assistant", "user"] and len(first.images) == 1


@pytest.mark.parametrize("form", ["files", "folder", "zip"])
def test_a_series_is_one_volume_with_a_slider(events, tmp_path, form):
    files = write_series(tmp_path / "study")
    expected = read_images(tmp_path / "study", slice=1)[0]
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
            archive.writestr("README.txt", "a viewer")
            for number, file in enumerate(reversed(files)):
                archive.write(file, f"{number}/IM1")
            archive.write(files[0], "DICOMDIR")
        files = [tmp_path / "study.zip"]
    elif form == "folder":
        (tmp_path / "README.txt").write_text("a viewer")
        files = [*reversed(files), tmp_path / "README.txt"]
    event = events.open_folder if form == "folder" else events.open
    *before, picture, index, plane, _, _, _, talk, message = event([str(file) for file in files], person())
    assert before == ([None] if form == "folder" else [])
    assert not message and "series of 4 files, slice 3 of 4" in picture and plane["visible"]
    assert (index["label"], index["maximum"], index["value"], index["visible"]) == ("Slice", 4, 3, True)
    events.choose(2, person())
    assert events.sessions.of("a").shown().image.tobytes() == expected.tobytes()


def test_files_of_two_series_are_refused_in_a_sentence_without_folders(events, tmp_path):
    one, other = write_series(tmp_path / "one"), write_series(tmp_path / "two", uid="1.2.4")
    *_, message = events.open([str(file) for file in (*one, *other)], person())
    assert "the series has slices of 2 series: select the files of one of them" in message
    assert str(tmp_path) not in message and not any(path.is_file() for path in events.sessions.folder.rglob("*"))


def test_a_picture_is_chosen_for_each_view_of_a_model_of_measures(measuring, tmp_path):
    sessions = Sessions(tmp_path / "sessions")
    events = Events(measuring, frozenset(), sessions, Corrections(tmp_path / "kept"), "/report", views=("ED", "ES"))
    frames = [np.full((32, 48), 60 * number, np.uint8) for number in range(3)]
    path = Path(write_avi(tmp_path / "echo.avi", frames))
    expected = measuring.measure({"ED": {"path": str(path), "frames": 2}, "ES": {"path": str(path), "frames": 1}})
    assert "drop a file first" in events.take("ED", person())[-1]
    events.open([str(path)], person())
    events.choose(3, person())
    chosen, following, message = events.take("ED", person())
    assert (
        "ED: echo.avi, frame 3 of 3" in chosen and "ES: no picture yet" in chosen and (following, message) == ("ES", "")
    )
    assert "the view ES has no picture" in events.measure(person())[1]
    events.take("ES", person())
    assert "ED and ES are one picture" in events.measure(person())[1]
    events.choose(2, person())
    events.take("ES", person())
    talk, message = events.measure(person())
    assert not message and f"<td>{expected.measures['EF']:.1f} %</td>" in talk and 'class="text"' not in talk
    events.close(person())
    assert events.show_chosen(person())[0].count("no picture yet") == 2


@pytest.mark.parametrize("error", [RuntimeError("Mrs <b>Miller</b>"), DataError("Mrs <b>Miller</b> is unreadable")])
def test_an_unexpected_error_is_a_sentence_and_a_line_without_values(events, monkeypatch, caplog, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Session, "turn", fail)
    monkeypatch.setattr(Session, "shown", fail)
    with pytest.raises(gr.Error) as caught:
        events.turn("axial", person())
    assert not caught.value.print_exception and "<" not in caught.value.message
    if isinstance(error, DataError):
        assert "Miller&lt;/b&gt; is unreadable" in caught.value.message and not caplog.text
    else:
        assert caught.value.message.startswith("this did not work (RuntimeError)")
        assert "an event of the page failed: RuntimeError in " in caplog.text and "Miller" not in caplog.text


def test_all_events_of_the_page_have_the_decorator(events):
    public = [name for name in vars(Events) if not name.startswith("_") and callable(getattr(Events, name))]
    assert len(public) == 16 and all(hasattr(getattr(Events, name), "__wrapped__") for name in public)
