"""State of the page of one person: the dropped files, the view, and the conversation."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mllm.dataset.readers.archive import BEGINNING, begins_with, unpack
from mllm.dataset.readers.dicom_frames import has_dicom_content, is_image_name
from mllm.errors import DataError, UserError
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
    chosen: dict[str, Shown] = field(default_factory=dict)
    """Picture of each view, for a model of measures."""
    asking: threading.Lock = field(default_factory=threading.Lock)
    """Held while a question is answered, so that the questions of one person follow each other."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set to end the answer that is written."""

    def open(self, files: Sequence[str], limit: int, only_dicom: bool = False) -> None:
        """Take the dropped files, and begin a new conversation about them. Raise `UserError` for unreadable files.

        Args:
            files: A file, the files of a DICOM series, or a zip archive with them.
            limit: Maximum number of bytes of the files of an archive.
            only_dicom: Leave other files out, as those beside the series in a folder.
        """
        self.close()
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True, mode=0o700)
        try:
            self.study = open_study(_taken(files, folder, limit, only_dicom))
        except BaseException:
            shutil.rmtree(folder)
            raise
        finally:
            for file in files:  # those that are left out can have names of patients, as a directory file has
                Path(file).unlink(missing_ok=True)
        self.view = self.study.first_view

    def close(self) -> None:
        """Forget the files and the conversation."""
        self.restart()
        self.study, self.view, self.chosen = None, View(), {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self) -> None:
        """Begin a new conversation. An answer of the former one ends."""
        self.stopped.set()
        self.conversation = Conversation()

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


def _taken(files: Sequence[str], folder: Path, limit: int, only_dicom: bool) -> list[Path]:
    """Move dropped files to a folder, and return the images among them; see `Session.open`."""
    files = list(dict.fromkeys(files))  # two equal files have one path in the folder of Gradio
    # The files of a series can have equal names.
    moved = [
        Path(shutil.move(file, folder / f"{number}_{Path(file).name}"))
        for number, file in enumerate(files)
        if len(files) == 1 or is_image_name(Path(file).name)
    ]
    if len(moved) == 1 and begins_with(moved[0], BEGINNING):
        unpacked = folder / "unpacked"  # a file of the archive can have its name
        unpacked.mkdir()
        paths = unpack(moved[0], unpacked, limit)
        moved[0].unlink()
        return paths
    if not only_dicom:
        return moved
    images = [path for path in moved if has_dicom_content(path)]
    for path in set(moved).difference(images):
        path.unlink()
    if not images:
        raise DataError("the folder has no DICOM files: drop a picture or a video as a file")
    return images


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
