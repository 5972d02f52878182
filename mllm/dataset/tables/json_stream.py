"""Reader of one JSON object or list whose long lists are read item by item, so that they take no memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import IO, Any

_CHUNK = 1 << 18
"""Characters of the first read."""
_SPACE = " \t\n\r"
_AFTER_NUMBER = tuple(f",]}}{_SPACE}")
"""Characters after a number. At another one, such as the e of 2.5e3, or at the end of a piece, it may be incomplete."""


class JsonStream:
    """Position in a JSON text that is read in pieces.

    Args:
        file: The text.
        decoder: Decoder of the values.
    """

    def __init__(self, file: IO[str], decoder: json.JSONDecoder | None = None) -> None:
        self._file, self._decoder = file, decoder or json.JSONDecoder()
        self._text, self._position = "", 0
        self._line, self._counted = 1, 0
        """Number of the line of a position in the present piece, and this position."""

    def members(self, lists: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
        """Yield key and value of each member of an object; nothing if the text is not an object.

        Args:
            lists: Function that returns True for keys whose lists are values as an iterator of their items. It must be
                used up before the next member is read.

        Raises:
            ValueError: The text is not valid JSON.
        """
        if self._next() != "{":
            return
        for _ in self._separated("}"):
            key = self._value()
            if not isinstance(key, str) or self._next() != ":":
                raise ValueError("not valid JSON")
            self._position += 1
            yield key, self._items() if self._next() == "[" and lists(key) else self._value()
        if self._next():
            raise ValueError("not valid JSON")

    def items(self) -> Iterator[tuple[int, Any]]:
        """Yield line, from 1, and value of each item of a list; nothing if the text is not a list.

        Raises:
            ValueError: The text is not valid JSON.
        """
        if self._next() != "[":
            return
        for _ in self._separated("]"):
            self._next()
            yield self._count(), self._value()
        if self._next():
            raise ValueError("not valid JSON")

    def _count(self) -> int:
        """Return the number of the line of the position."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def _items(self) -> Iterator[Any]:
        return (self._value() for _ in self._separated("]"))

    def _separated(self, end: str) -> Iterator[None]:
        """Yield before each entry of the list or object that begins at the position, and skip its commas."""
        self._position += 1
        if self._next() == end:
            self._position += 1
            return
        while True:
            yield
            character = self._next()
            self._position += 1
            if character == end:
                return
            if character != ",":
                raise ValueError("not valid JSON")

    def _next(self) -> str:
        """Skip white space and return the next character; empty at the end."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read():
                return ""

    def _value(self) -> Any:
        """Return the value at the position."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError:
                if not self._read():
                    raise
                continue
            is_whole = not isinstance(value, (int, float)) or self._text[end : end + 1] in _AFTER_NUMBER
            if is_whole or not self._read():
                self._position = end
                return value

    def _read(self) -> bool:
        """Read the next piece; return False at the end of the text. Longer values are read in longer pieces."""
        self._count()
        rest, self._counted = self._text[self._position :], 0
        piece = self._file.read(max(_CHUNK, len(rest)))
        self._text, self._position = rest + piece, 0
        return bool(piece)
