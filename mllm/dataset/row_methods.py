"""Methods of datasets that read one row: each error names its row, and each patient has one form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mllm.dataset.tables.values import patient_of
from mllm.errors import ConfigError, UserError, errors_of_row, is_out_of_memory, with_location
from mllm.structures import Sample

ROW_METHODS = ("sample", "inspect", "plain", "measures", "group")
"""Methods of a dataset whose first argument is the index of a row."""


def with_row_errors(cls: Any) -> None:
    """Replace the methods in `ROW_METHODS` that a class defines by checked ones."""
    for name in ROW_METHODS:
        if name in vars(cls):
            setattr(cls, name, _checked(vars(cls)[name]))


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that converts exceptions to errors with the location of the row, and patients to one form.

    An `IndexError` for an index that the dataset does not have is passed on, because it ends a loop over a dataset.
    """

    @functools.wraps(method)
    def read(self: Any, index: int, *args: Any, **options: Any) -> Any:
        try:
            result = method(self, index, *args, **options)
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error) or (isinstance(error, IndexError) and not -len(self) <= index < len(self)):
                raise
            with errors_of_row(self.describe(index)):
                raise
        return _normalized(result, type(self).__name__, method.__name__, self.describe, index)

    return read


def _normalized(result: Any, owner: str, method: str, describe: Callable[[int], str], index: int) -> Any:
    """Return the result of a method, with the patient in one form."""
    if method in ("sample", "inspect", "plain"):
        if not isinstance(result, Sample):
            raise ConfigError(f"{owner}.{method} must return a Sample, not {type(result).__name__}")
        patient = _patient(result.group, describe, index)
        return result if patient == result.group else replace(result, group=patient)
    return _patient(result, describe, index) if method == "group" else result


def _patient(value: Any, describe: Callable[[int], str], index: int) -> str | None:
    if value is None:
        return None
    try:
        return patient_of(value, "group")
    except UserError as error:
        raise with_location(error, describe(index)) from error
