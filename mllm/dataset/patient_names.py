"""Patients in the names of image files."""

from __future__ import annotations

import re

from mllm.errors import ConfigError, DataError


class PatientNames:
    """Finder of the patient in the path of an image.

    Args:
        pattern: Regular expression with one group, the patient, such as `r"(P\\d+)_"`. None: patients are unknown.

    Raises:
        ConfigError: The expression is invalid, or has not exactly one group.
    """

    def __init__(self, pattern: str | None) -> None:
        try:
            self.pattern = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"patient='{pattern}' is not a regular expression ({error})") from error
        if self.pattern is not None and self.pattern.groups != 1:
            raise ConfigError(f"patient='{pattern}' must have one group, the patient, as in '(P\\\\d+)_'")

    def find(self, path: str) -> str | None:
        """Return the patient of an image; None without a pattern.

        Raises:
            DataError: The pattern does not match the path.
        """
        if self.pattern is None:
            return None
        match = self.pattern.search(path)
        if match is None:
            fault = f"patient='{self.pattern.pattern}' does not match the path"
            raise DataError(f"{fault} {path}", fault)
        return match[1]
