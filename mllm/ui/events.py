"""Events of the page: each returns the values of the components that it changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from html import escape
from threading import Event
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import gradio as gr

from mllm.dataset.readers.windows import WINDOWS
from mllm.errors import DataError, UserError, origin_of
from mllm.serve.limits import Limits
from mllm.ui.conversation import Asker, Exchange
from mllm.ui.corrections import Corrections
from mllm.ui.rendering import chosen_html, conversation_html, message_html, picture_html, report_html, writing_html
from mllm.ui.reports import report_of
from mllm.ui.session import Session, Sessions
from mllm.ui.study import Study, Window

logger = logging.getLogger(__name__)
Inputs = ParamSpec("Inputs")
Outputs = TypeVar("Outputs")
AS_STORED, OWN = "as stored", "center and width"
"""Choices of a window besides the names of windows."""
PACE = 0.1
"""Seconds between two states of an answer that is written."""
NO_AXIS = "as acquired"
"""Choice of the plane of the file."""
Update = Any
"""Value of a component, or an update of Gradio."""


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn unexpected errors into one sentence for the person, and a line of the log without values.

    Gradio would print their tracebacks, which have names of files and texts of questions.
    """
    try:
        yield
        return
    except UserError as error:
        sentence = str(error)
    except Exception as error:  # noqa: BLE001
        logger.error("an event of the page failed: %s in %s", type(error).__name__, origin_of(error))
        sentence = f"this did not work ({type(error).__name__}): the log of the server names the place"
        raise gr.Error(escape(sentence), print_exception=False) from None
    raise gr.Error(escape(sentence), print_exception=False)


def _with_sentence(
    event: Callable[Concatenate[Events, Inputs], Outputs],
) -> Callable[Concatenate[Events, Inputs], Outputs]:
    """Return an event whose unexpected errors are sentences."""

    @wraps(event)
    def run(events: Events, /, *inputs: Inputs.args, **named: Inputs.kwargs) -> Outputs:
        with _sentences():
            return event(events, *inputs, **named)

    return run


def _with_sentences(
    event: Callable[Concatenate[Events, Inputs], Iterator[Outputs]],
) -> Callable[Concatenate[Events, Inputs], Iterator[Outputs]]:
    """Return an event with several outputs, whose unexpected errors are sentences."""

    @wraps(event)
    def run(events: Events, /, *inputs: Inputs.args, **named: Inputs.kwargs) -> Iterator[Outputs]:
        with _sentences():
            yield from event(events, *inputs, **named)

    return run


@dataclass(frozen=True)
class Events:
    """Events of the page.

    Args:
        asker: Source of the answers.
        needs_image: Names of the models that were trained on questions about images.
        sessions: State of each open page.
        corrections: Folder of the corrections.
        report_address: Address under which a report is served; `?run=FOLDER` follows.
        limits: Limits of the server.
        views: Views of a model of measures; empty for models that answer questions.
    """

    asker: Asker
    needs_image: frozenset[str]
    sessions: Sessions
    corrections: Corrections
    report_address: str
    limits: Limits = Limits()
    views: tuple[str, ...] = ()

    @_with_sentence
    def open(self, files: Sequence[str] | None, request: gr.Request) -> list[Update]:
        """Open dropped files. Return the view, the conversation and the message."""
        return self._open(files, request, only_dicom=False)

    @_with_sentence
    def open_folder(self, files: Sequence[str] | None, request: gr.Request) -> list[Update]:
        """Open the DICOM series in a folder. Return the empty drop area, the view, the conversation and the message."""
        return [None, *self._open(files, request, only_dicom=True)]

    def _open(self, files: Sequence[str] | None, request: gr.Request, only_dicom: bool) -> list[Update]:
        session = self._session(request)
        try:
            session.open(files or [], self.limits.upload, only_dicom)
            return [*self._view(session), "", ""]
        except UserError as error:
            return [*self._view(session), "", message_html(str(error))]

    @_with_sentence
    def close(self, request: gr.Request) -> list[Update]:
        """Forget the files. Return the empty drop area, the view, the conversation and the message."""
        session = self._session(request)
        session.close()
        return [None, *self._view(session), "", ""]

    @_with_sentence
    def choose(self, number: int, request: gr.Request) -> list[Update]:
        """Show a slice, frame or page, from 1. Return the picture and the message."""
        session = self._session(request)
        session.view = replace(session.view, index=int(number) - 1)
        return self._picture(session)

    @_with_sentence
    def turn(self, axis: str, request: gr.Request) -> list[Update]:
        """Show a volume along another axis. Return the view and the message."""
        session = self._session(request)
        before = session.study, session.view
        try:
            session.turn(None if axis == NO_AXIS else axis)
            return [*self._view(session), ""]
        except UserError as error:
            session.study, session.view = before
            return [*self._view(session), message_html(str(error))]

    @_with_sentence
    def choose_window(self, name: str, request: gr.Request) -> list[Update]:
        """Show the picture with a window. Return the view and the message."""
        session = self._session(request)
        if session.study is None:
            return [*self._view(session), ""]
        before = session.view
        window: Window = name
        if name == OWN:
            # The sliders begin with the window in view, if its numbers are known.
            low, high = session.study.limits
            window = WINDOWS.get(str(before.window), ((low + high) / 2, high - low))
        session.view = replace(before, window=None if name == AS_STORED else window)
        try:
            return [*self._view(session), ""]
        except UserError as error:
            session.view = before
            return [*self._view(session), message_html(str(error))]

    @_with_sentence
    def own_window(self, center: float, width: float, request: gr.Request) -> list[Update]:
        """Show the picture with a window of the sliders. Return the picture and the message."""
        session = self._session(request)
        session.view = replace(session.view, window=(float(center), float(width)))
        return self._picture(session)

    @_with_sentences
    def ask(
        self, question: str, models: Sequence[str], length: int, modality: str, request: gr.Request
    ) -> Iterator[list[Update]]:
        """Ask the selected models, and yield the page while their answers are written.

        Values: the conversation, the answers that are written, the message, the question, the state of corrections, and
        the buttons that ask and stop.
        """
        session = self._session(request)
        options = {"max_new_tokens": int(length), **({"modality": modality.strip()} if modality.strip() else {})}
        message, skip, written = "", gr.skip(), 0.0
        conversation = session.conversation
        try:
            if session.study is None and (missing := [name for name in models if name in self.needs_image]):
                raise DataError(f"the model {missing[0]} answers questions about images: drop one first")
            shown = session.shown()
            with session.asking:
                session.stopped = stopped = Event()
                steps = conversation.ask(self.asker, models, question, shown, stopped.is_set, **options)
                for number, exchange in enumerate(steps):
                    if number == 0:
                        talk = self._talk([*conversation.exchanges, exchange])
                        yield [talk, self._writing(models, exchange), "", "", "", *_buttons(is_asking=True)]
                    elif time.monotonic() > written + PACE:
                        yield [skip, self._writing(models, exchange), *[skip] * 5]
                        written = time.monotonic()
        except UserError as error:
            # A new conversation may have begun meanwhile: the answer belongs to the former one.
            message = message_html(str(error)) if session.conversation is conversation else ""
        talk = self._talk(session.conversation.exchanges)
        yield [talk, "", message, question if message else skip, "", *_buttons(is_asking=False)]

    @_with_sentence
    def take(self, view: str, request: gr.Request) -> list[Update]:
        """Take the picture in view for a view of the model. Return the chosen pictures, the next view, the message."""
        session = self._session(request)
        try:
            shown = session.shown()
            if shown is None:
                raise DataError("there is no picture: drop a file first")
        except UserError as error:
            return [gr.skip(), gr.skip(), message_html(str(error))]
        session.chosen[view] = shown
        missing = [name for name in self.views if name not in session.chosen]
        return [self._chosen(session), missing[0] if missing else view, ""]

    @_with_sentence
    def show_chosen(self, request: gr.Request) -> list[Update]:
        """Return the chosen pictures, which a new file removes, and the first view."""
        return [self._chosen(self._session(request)), self.views[0]]

    @_with_sentence
    def measure(self, request: gr.Request) -> list[Update]:
        """Measure the chosen pictures. Return the conversation and the message."""
        session = self._session(request)
        try:
            with session.asking:
                session.conversation.measure(self.asker, self.views, session.chosen)
        except UserError as error:
            return [gr.skip(), message_html(str(error))]
        return [self._talk(session.conversation.exchanges), ""]

    @_with_sentence
    def stop(self, request: gr.Request) -> None:
        """End the answers that are written."""
        self._session(request).stopped.set()

    @_with_sentence
    def restart(self, request: gr.Request) -> list[Update]:
        """Begin a new conversation about the same files. Return the conversation, message and state of corrections."""
        self._session(request).restart()
        return ["", "", ""]

    @_with_sentence
    def keep(self, answer: str, patient: str, request: gr.Request) -> list[Update]:
        """Write a correction. Return the state of corrections and the field of the right answer."""
        exchanges = self._session(request).conversation.exchanges
        try:
            if not exchanges:
                raise DataError("a correction needs a question: ask one first")
            last = exchanges[-1]
            images = [picture.image for picture in last.pictures]
            count = self.corrections.keep(images, last.question, answer, patient, last.modality)
        except UserError as error:
            return [message_html(str(error)), answer]
        rows = "1 row" if count == 1 else f"{count:,} rows"
        return [message_html(f"Kept. {self.corrections.table} has {rows}.", is_error=False), ""]

    @_with_sentence
    def show_report(self, run: str | None) -> Update:
        """Return the report of a run."""
        try:
            report_of(run or "")
        except UserError as error:
            return message_html(str(error))
        return report_html(f"{self.report_address}?run={quote(run or '')}", run or "")

    @_with_sentence
    def leave(self, request: gr.Request) -> None:
        """Forget the session of a page that was closed."""
        self.sessions.end(str(request.session_hash))

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.of(str(request.session_hash))

    def _chosen(self, session: Session) -> str:
        return chosen_html([(name, session.chosen.get(name)) for name in self.views])

    def _talk(self, exchanges: Sequence[Exchange]) -> str:
        return conversation_html(exchanges, named=len(self.asker.names) > 1)

    def _writing(self, models: Sequence[str], exchange: Exchange) -> str:
        texts = [(name, exchange.written.get(name, ""), name in exchange.answers) for name in models]
        return writing_html(texts, named=len(self.asker.names) > 1)

    def _picture(self, session: Session) -> list[Update]:
        try:
            shown = session.shown()
        except UserError as error:
            return [gr.skip(), message_html(str(error))]
        return ["" if shown is None else picture_html(shown.image, shown.caption), ""]

    def _view(self, session: Session) -> list[Update]:
        """Return the picture and its controls: slice, plane, window, center and width. Raise `UserError`."""
        study, shown = session.study, session.shown()
        if study is None or shown is None:
            return ["", *[gr.update(visible=False)] * 5]
        return [picture_html(shown.image, shown.caption), *_controls(study, session)]


def _buttons(is_asking: bool) -> list[Update]:
    """Return the buttons that ask and stop."""
    return [gr.update(visible=not is_asking), gr.update(visible=is_asking)]


def _controls(study: Study, session: Session) -> list[Update]:
    """Return the controls of a view. Controls without a choice are not shown."""
    view = session.view
    name = AS_STORED if view.window is None else view.window if isinstance(view.window, str) else OWN
    choices = [AS_STORED, *study.windows, OWN] if study.windows else [AS_STORED]
    updates = [
        gr.update(
            label=study.noun.capitalize(),
            maximum=max(2, study.count),
            value=view.index + 1,
            visible=study.count > 1,
        ),
        gr.update(value=study.axis or NO_AXIS, visible=study.is_volume),
        gr.update(choices=choices, value=name, visible=len(choices) > 1),
    ]
    if not isinstance(view.window, tuple):
        return [*updates, *[gr.update(visible=False)] * 2]
    (low, high), (center, width) = study.limits, view.window
    step = 1 if high - low > 20 else (high - low) / 100
    return [
        *updates,
        gr.update(minimum=low, maximum=high, step=step, value=center, visible=True),
        gr.update(minimum=step, maximum=max(high - low, step), step=step, value=width, visible=True),
    ]
