"""State of the page of one person: the dropped files, the view, and the conversation."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mllm.errors import UserError
from mllm.ui.conversation import Conversation, Shown
from mllm.ui.study import Study, View, open_study, without_folders


@dataclass
class Session:
    """Page of one person."""

    folder: Path
    """Folder of the dropped files, which is removed with the session."""
    study: Study | None = None
    view: View = field(default_factory=View)
    conversation: Conversation = field(default_factory=Conversation)
    asking: threading.Lock = field(default_factory=threading.Lock)
    """Held while a question is answered, so that the questions of one person follow each other."""

    def open(self, files: Sequence[str]) -> None:
        """Take the dropped files, and begin a new conversation about them. Raise `UserError` for unreadable files."""
        self.close()
        folder = self.folder / uuid.uuid4().hex
        moved = []
        for number, file in enumerate(files):
            place = folder / str(number)  # the files of a series can have equal names
            place.mkdir(parents=True, mode=0o700)
            moved.append(shutil.move(file, place / Path(file).name))
        try:
            self.study = open_study(moved)
        except UserError:
            shutil.rmtree(folder)
            raise
        self.view = self.study.first_view

    def close(self) -> None:
        """Forget the files and the conversation."""
        self.study, self.view, self.conversation = None, View(), Conversation()
        shutil.rmtree(self.folder, ignore_errors=True)

    def turn(self, axis: str | None) -> None:
        """Show the volume along another axis, from its middle."""
        if self.study is not None and axis != self.study.axis:
            self.study = self.study.along(axis)
            self.view = replace(self.study.first_view, window=self.view.window)

    def shown(self) -> Shown | None:
        """Return the picture in view; None without a study. Raise `UserError` if it cannot be read."""
        if self.study is None:
            return None
        try:
            image = self.study.picture(self.view)
        except UserError as error:
            source = self.study.source
            paths = [source] if isinstance(source, Path) else list(source)
            raise type(error)(without_folders(str(error), paths)) from error
        return Shown(image, self.study.caption(self.view), (self.study.source, self.view))


class Sessions:
    """Sessions by the name that Gradio gives to an open page.

    Args:
        folder: Folder of the dropped files of all sessions.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, name: str) -> Session:
        """Return a session; it begins with the first call."""
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = Session(self.folder / uuid.uuid4().hex)
            return self._sessions[name]

    def end(self, name: str) -> None:
        """Forget a session and its files."""
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is not None:
            session.close()
