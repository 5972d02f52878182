"""What a user reads when something is wrong: one sentence with the place, the reason and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A failure that the user can mend; printed as its sentence alone, with exit code 2."""


class ConfigError(UserError):
    """A config, a command line or an environment asks for something that cannot be done as written."""


class DataError(UserError):
    """A file, a row or an image cannot be used as it is."""


class TrainingError(UserError):
    """A run cannot go on: its loss is not a number, or the memory or the disk is full."""


def with_location(error: UserError, location: str) -> UserError:
    """Return an error of the same kind whose message begins with a location, such as `FILE, line N`."""
    kinds = (ConfigError, DataError, TrainingError, UserError)
    kind = next(kind for kind in kinds if isinstance(error, kind))
    return kind(f"{location}: {error}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch is not imported for it, and tells of the host's memory by a RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


@contextmanager
def memory_advised(advice: str, moment: str = "") -> Iterator[None]:
    """Where memory runs out inside, a `TrainingError` says at which moment and gives the advice."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory{moment}. {advice}") from error


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of the `known` names that `name` could be a misspelling of, nearest first."""
    folded = {other.lower(): other for other in known}
    return [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=count, cutoff=0.6)]


def hint(name: str, known: Iterable[str]) -> str:
    """The tail of a sentence: `: did you mean 'lora_r'?`, or the known names where none is near."""
    known = sorted(known)
    matches = near(name, known, count=1)
    if matches:
        return f": did you mean '{matches[0]}'?"
    return f"; known are {', '.join(known)}" if known else ""
