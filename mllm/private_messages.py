"""Messages of private runs: split, row number and reason, without values of rows, headers and paths of the data.

A private run has `privacy_args` in its config. While it is active, errors, log records and warnings are rewritten here:

* The message of an error about a row is its split and number (`train, row 3`) and `UserError.reason`, or else the
  literal text of its message with `…` for each value.
* The message of an unexpected exception is its type and its locations in the source.
* Records of `mllm.dataset` keep their literal text and arguments of type `PublicText`; other arguments become `…`.
* Texts of other packages' records and warnings are left out, unless the package only computes with tensors.
"""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePath
from typing import Any, TypeVar

from mllm.errors import DataError, TrainingError, UserError, code_location, is_out_of_memory, one_line
from mllm.files import is_disk_full
from mllm.literal_text import literal_text

logger = logging.getLogger(__name__)

LEFT_OUT = "left out, because the run is private"
DATA_LOGGER = "mllm.dataset"
"""Logger whose records may hold values of rows."""
QUIET = ("pydicom", "PIL", "nibabel", "libav", "av", "datasets", "fsspec", "openpyxl")
"""Loggers of packages that read data. Their records would only say that their text is left out."""
# Debug records of Pillow contain texts of headers. The level is set here, before any private run: a level that a reader
# sets when a private run imports it would replace that of the run, and be lost at its end.
logging.getLogger("PIL").setLevel(logging.INFO)
COMPUTING = ("accelerate", "bitsandbytes", "deepspeed", "opacus", "peft", "torch")
"""Packages that get tensors only, so that their messages hold no values of rows."""
_CONVERSION = re.compile(r"%(?:%|[-#0 +]*\d*(?:\.\d+)?[a-zA-Z])")
_DATASET = "mllm/dataset/"
_CALLS = 6
"""Number of locations in the source that the message about an unexpected exception has."""

T = TypeVar("T")
_is_private = False
_row: ContextVar[tuple[str, int] | None] = ContextVar("row", default=None)
"""Split and index of the row that is being read."""


class PublicText(str):
    """Text without values of rows, headers and paths of the data, which the log of a private run keeps."""

    __slots__ = ()


def is_private() -> bool:
    """Return True while a private run is active in this process."""
    return _is_private


class in_row:  # noqa: N801
    """Context manager in which messages of private runs name the row of a split with this index, from 0.

    It is no generator, because it is entered for every row.
    """

    __slots__ = ("_row", "_token")

    def __init__(self, split: str, index: int) -> None:
        self._row = split, index

    def __enter__(self) -> None:
        self._token = _row.set(self._row)

    def __exit__(self, *error: object) -> None:
        _row.reset(self._token)


def current_row() -> PublicText:
    """Return split and number of the row that is being read: `train, row 3`, with numbers from 1."""
    return row_name(*row_in_split())


def row_in_split() -> tuple[str, int]:
    """Return split and index of the row that is being read; an empty split and -1 if it is not known."""
    return _row.get() or ("", -1)


def row_name(split: str, index: int) -> PublicText:
    """Return split and number of a row: `train, row 3`, with numbers from 1; `a row` if the split is empty."""
    return PublicText(f"{split}, row {index + 1}" if split else "a row")


def sentence_of(error: UserError) -> str:
    """Return the message of an error about the current row in one line; in a private run, split, number and reason."""
    return one_line(f"{current_row()}: {_reason(error)}" if _is_private else str(error))


def add_row(error: UserError) -> None:
    """Add the split and number of the current row to the reason of an error."""
    error.reason = f"{current_row()}: {_reason(error)}"


def error_of(sentence: str) -> DataError:
    """Return a `DataError` with a result of `sentence_of`."""
    return DataError(sentence, sentence if _is_private else None)


@contextmanager
def in_split(split: str) -> Iterator[None]:
    """Let errors about the data of a split, such as a missing table, have a reason that begins with the split."""
    try:
        yield
    except UserError as error:
        if not _is_private:
            raise
        raise DataError(str(error), f"data_args.{split}: {_reason(error)}") from error


def call_privately(function: Callable[[], T], is_private_run: bool = True) -> T:
    """Return the result of a function, all messages of which are rewritten as those of a private run.

    This is a function, because an exception that a context manager raises keeps the original one as its context.

    Args:
        function: The function.
        is_private_run: False: call the function without any change.

    Raises:
        UserError: An error of the function, without values. An unexpected exception becomes a `TrainingError`.
    """
    if not is_private_run or _is_private:
        return function()
    undo = _start()
    try:
        return function()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        public, trace = _public(error), error.__traceback__
        public.__cause__ = public.__context__ = None
    finally:
        undo()
    raise public.with_traceback(trace)  # outside of the handler, so that the original exception is not its context


def worker_setup() -> Callable[[int], None] | None:
    """Return the initial function of the workers of a data loader, which rewrites their messages in a private run."""
    return _set_up_worker if _is_private else None


def _set_up_worker(number: int) -> None:
    if not _is_private:  # a forked worker inherits the state
        _start()


def _start() -> Callable[[], None]:
    """Begin to rewrite messages, and return the function that ends it."""
    global _is_private
    factory, show, levels = logging.getLogRecordFactory(), warnings.showwarning, _levels()
    _is_private = True
    logging.setLogRecordFactory(_Records(factory))
    warnings.showwarning = _Warnings(show)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def undo() -> None:
        global _is_private
        _is_private = False
        logging.setLogRecordFactory(factory)
        warnings.showwarning = show
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

    return undo


def _levels() -> dict[str, int]:
    return {name: logging.getLogger(name).level for name in QUIET}


def _reason(error: UserError) -> str:
    """Return the reason of an error, or else the literal text of its message and the command that shows all of it."""
    if error.reason:
        return error.reason
    row = _row.get()
    options = "" if row is None else f" --split {row[0]} --index {row[1]}"
    text = literal_text(error)
    cause = f"it cannot be used; the reason is {LEFT_OUT}" if text is None else text
    return f"{cause} (`mllm show sample CONFIG{options}` shows the values at the terminal)"


def _public(error: BaseException) -> BaseException:
    """Return an error without values that replaces `error`: itself if its text has none."""
    if isinstance(error, KeyboardInterrupt) or is_out_of_memory(error) or is_disk_full(error):
        return error
    calls = [code_location(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, UserError):
        # An error of the config may hold values, too, if it was raised where data are read.
        is_about_data = any(call.startswith(_DATASET) for call in calls) or not calls[-1].startswith("mllm/")
        message = _reason(error) if is_about_data or isinstance(error, DataError) else str(error)
        return type(error)(message, error.reason)
    return TrainingError.without_values(
        f"unexpected {type(error).__name__} in {' <- '.join(calls[::-1][:_CALLS])}; its text is {LEFT_OUT}"
    )


class _Records:
    """Factory of log records without values."""

    def __init__(self, factory: Callable[..., logging.LogRecord]) -> None:
        self.factory = factory

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.factory(*args, **kwargs)
        package = record.name.partition(".")[0]
        if package == "mllm":
            if record.name == DATA_LOGGER or record.name.startswith(f"{DATA_LOGGER}."):
                _hide_arguments(record)
        elif package not in COMPUTING:
            record.msg, record.args = f"a message of {package} is {LEFT_OUT}", ()
        record.exc_info = record.exc_text = record.stack_info = None
        return record


def _hide_arguments(record: logging.LogRecord) -> None:
    """Replace the arguments of a record by `…`, except those of type `PublicText`."""
    arguments = record.args if isinstance(record.args, tuple) else (record.args,)
    record.msg = _CONVERSION.sub(lambda match: match[0] if match[0] == "%%" else "%s", str(record.msg))
    record.args = tuple(argument if isinstance(argument, PublicText) else "…" for argument in arguments)


class _Warnings:
    """Function that shows warnings, each kind once, without their texts."""

    def __init__(self, show: Callable[..., None]) -> None:
        self.show = show
        self.shown: set[tuple[str, str]] = set()

    def __call__(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any, **options: Any
    ) -> None:
        location = code_location(filename, lineno)
        if PurePath(location).parts[0] in COMPUTING:
            self.show(message, category, filename, lineno, *rest, **options)
        elif (kind := (category.__name__, location)) not in self.shown:
            self.shown.add(kind)
            logger.warning("%s in %s; its text is %s", *kind, LEFT_OUT)
