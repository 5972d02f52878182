"""Literal texts of errors: messages as the source of this package has them, without the values in them."""

from __future__ import annotations

import ast
import re
import traceback
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
VALUE = "…"
"""Replacement of a value in a message."""
_LOCATION = re.compile(rf"^{VALUE}(, \w+ {VALUE})?:? ")
"""Location at the beginning of a message: `…, line …: `."""


def literal_text(error: BaseException) -> str | None:
    """Return the message of an error with `…` for each value, or that of its cause.

    `raise DataError(f"{path} has no frame {number}")` gives 'has no frame …'. None: the statement that raised the
    error is not in this package, or its message has no word.
    """
    current: BaseException | None = error
    while current is not None:
        frames = traceback.extract_tb(current.__traceback__)
        if frames and frames[-1].lineno is not None:
            text = _messages(frames[-1].filename).get(frames[-1].lineno)
            if text is not None:
                return text
        current = current.__cause__
    return None


@cache
def _messages(file: str) -> dict[int, str]:
    """Return the literal texts of all errors that a file of this package raises, by each line of their statements."""
    path = Path(file)
    if not path.is_absolute() or not path.is_relative_to(PACKAGE):
        return {}
    texts: dict[int, str] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = _LOCATION.sub("", _literal(node.exc.args[0]))
            if re.search(r"[a-z]{2}", text):
                texts.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), text))
    return texts


def _literal(node: ast.expr) -> str:
    """Return the text of a string or an f-string with `…` for each value; empty for other expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    return ""
