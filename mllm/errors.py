"""User-facing errors: one sentence with location, cause and fix."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import PurePath

from typing_extensions import Self

ROW_ADVICE = "correct the row, or leave such rows out with data_args.on_error='skip'"
"""End of messages about an unusable row of a split."""
NEAR = 0.6
"""Similarity from which a name is suggested."""
SHORT = 4
"""Names with fewer letters are compared with whole names only: `lr` is no `lr_scheduler_type`."""


class UserError(Exception):
    """Error that the user can fix; commands print its message without a traceback and exit with code 2.

    Args:
        message: Sentence with location, cause and fix.
        reason: Cause and fix without location and without any value of a row, a header or a path of the data. A private
            run shows it in place of the message; None: the cause cannot be stated without such values.
    """

    def __init__(self, message: str = "", reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def without_values(cls, message: str) -> Self:
        """Return an error whose message contains no value of a row, a header or a path of the data."""
        return cls(message, message)

    @classmethod
    def at(cls, location: str, reason: str) -> Self:
        """Return an error `LOCATION: REASON`; the reason contains no value of a row, a header or a path of the data."""
        return cls(f"{location}: {reason}", reason)


class ConfigError(UserError):
    """Invalid config, command line or environment."""


class DataError(UserError):
    """Unusable file, row or image."""


class TrainingError(UserError):
    """Run that cannot continue: non-finite loss, out of memory, or full disk."""


def with_location(error: UserError, location: str) -> UserError:
    """Return an error of the same class whose message begins with a location, such as `FILE, line N`."""
    kinds = (ConfigError, DataError, TrainingError, UserError)
    kind = next(kind for kind in kinds if isinstance(error, kind))
    message = str(error)
    return kind(message if message.startswith(f"{location}: ") else f"{location}: {message}", error.reason)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for out-of-memory errors of Python and PyTorch, without importing PyTorch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def missing_package(error: BaseException) -> str | None:
    """Return the end of a message about a package that is not installed, with the command; None for other errors.

    transformers writes the command into the messages of its optional packages, in quotes or on a line of its own. Some
    packages have another name on PyPI than in Python, so the command takes precedence over the name of the module.
    """
    if not isinstance(error, ImportError):
        return None
    command = re.search(r"pip install (?:-U |--upgrade )?([\w.\-\[\],]+)", str(error))
    library = re.search(r"requires the ([\w.-]+) library", str(error))
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    package = command[1] if command else library[1].lower() if library else missing
    if package is None:
        return f"cannot be used with the installed packages: {one_line(str(error))}"
    return f"needs the package {package}, which is not installed: pip install {package}"


@contextmanager
def advise_on_memory(advice: str, moment: str = "") -> Iterator[None]:
    """Convert out-of-memory errors in the block to a `TrainingError` with advice.

    Args:
        advice: Sentence about settings to lower.
        moment: Time of the error, such as ' at step 3'.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory{moment}. {advice}") from error


@contextmanager
def errors_of_row(location: str) -> Iterator[None]:
    """Convert unexpected exceptions in the block to a `DataError` that names a row, so that the row can be skipped.

    User errors, which name their row, and out-of-memory errors, which do not depend on a row, are not converted. A
    missing package becomes a `ConfigError`.

    Args:
        location: Origin of the row, such as `FILE, line N`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if (package := missing_package(error)) is not None:
            raise ConfigError(f"{location}: the row {package}") from error
        raise DataError(
            f"{location}: it cannot be used ({type(error).__name__}: {error})",
            f"it cannot be used ({type(error).__name__} in {origin_of(error)})",
        ) from error


def origin_of(error: BaseException) -> str:
    """Return the location in the source that raised an exception; see `code_location`."""
    frames = traceback.extract_tb(error.__traceback__)
    return code_location(frames[-1].filename, frames[-1].lineno) if frames else "an unknown location"


def code_location(file: str, line: int | None) -> str:
    """Return `PACKAGE/.../FILE:LINE` for a file of an installed package or of this one, and else `FILE:LINE`."""
    parts = PurePath(file).parts
    start = len(parts) - 1
    if "site-packages" in parts:
        start = len(parts) - parts[::-1].index("site-packages")
    elif __package__ in parts:
        start = len(parts) - 1 - parts[::-1].index(__package__)
    return f"{'/'.join(parts[start:])}:{line or 0}"


def one_line(message: str) -> str:
    """Return a message in one line, with single spaces: its form in lists of unusable rows."""
    return " ".join(message.split())


def advised(message: str, advice: str = ROW_ADVICE) -> str:
    """Return a message with the ways to correct its cause at the end."""
    if message.endswith("?"):
        return f"{message} {advice[0].upper()}{advice[1:]}"
    return f"{message}; {advice}"


def with_advice(error: UserError, advice: str) -> UserError:
    """Return an error of the same class whose message ends with an advice, which must not have values of the data."""
    kinds = (ConfigError, DataError, TrainingError, UserError)
    kind = next(kind for kind in kinds if isinstance(error, kind))
    return kind(advised(str(error), advice), error.reason and advised(error.reason, advice))


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of the `known` names that resemble `name`, nearest first.

    A name also resembles one that begins with it, such as `adam` and `adamw_torch`. Of equally near names those that
    come first in `known` are returned.
    """
    folded = {other.lower(): other for other in known}
    nearness = {other: _nearness(name.lower(), other) for other in folded}
    near = sorted((other for other in folded if nearness[other] >= NEAR), key=lambda other: -nearness[other])
    return [folded[other] for other in near[:count]]


def _nearness(name: str, other: str) -> float:
    """Return the similarity of two names, or of the first one and the first words of the other, from 0 to 1."""
    ratio = difflib.SequenceMatcher(None, other, name).ratio()
    if len(name) < SHORT:
        return ratio
    words = other.split("_")
    starts = ("_".join(words[:count]) for count in range(1, len(words)))
    return max(ratio, *(0.95 * difflib.SequenceMatcher(None, start, name).ratio() for start in starts), 0.0)


def hint(name: str, known: Iterable[str]) -> str:
    """Return the end of a message: `: did you mean 'lora_r'?`, or the known names if none resembles `name`."""
    known = sorted(known) if isinstance(known, Set) else list(known)
    matches = nearest_names(name, known, count=1)
    if matches:
        return f": did you mean '{matches[0]}'?"
    return f"; known are {', '.join(sorted(known))}" if known else ""
