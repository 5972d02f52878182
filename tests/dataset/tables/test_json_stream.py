"""Streams of JSON, compared with the json module for every division into pieces."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from mllm.dataset.tables import json_stream
from mllm.dataset.tables.json_stream import JsonStream

CONTENT = {
    "info": {"year": 2026, "nested": [[1, -2.5e3], {}, [], None, True]},
    "images": [{"id": 1, "name": 'a "b" \u00e9 ]}'}, {}, {"x": [1, [2]]}],
    "number": -12.25e-3,
    "empty": [],
    "texts": ["]", ",", "\\"],
    "\u00e9": False,
}


def members(text: str, piece: int, lists: tuple[str, ...] = ("images", "empty", "texts")) -> dict[str, Any]:
    stream = JsonStream(io.StringIO(text))
    original, json_stream._CHUNK = json_stream._CHUNK, piece
    try:
        pairs = stream.members(lists.__contains__)
        return {key: list(value) if key in lists and not isinstance(value, str) else value for key, value in pairs}
    finally:
        json_stream._CHUNK = original


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 64, 1 << 20])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_members_are_those_of_json(piece, layout):
    assert members(json.dumps(CONTENT, **layout), piece) == CONTENT


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 64, 1 << 20])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}])
def test_items_are_those_of_json_with_the_lines_on_which_they_begin(piece, layout, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", piece)
    rows = [{"a": "x\ny", "b": [1, 2]}, -2.5e3, [], "]", CONTENT]
    texts = [json.dumps(row, **layout) for row in rows]
    pieces, lines, line = [" \n["], [], 2
    for number, text in enumerate(texts):
        gap = "\n" * (number % 3) + " "
        line += number % 3
        lines.append(line)
        pieces.append(f"{gap}{text}{',' * (number + 1 < len(texts))}")
        line += text.count("\n")
    text = "".join([*pieces, "\n]\n"])
    assert json.loads(text) == rows
    assert list(JsonStream(io.StringIO(text)).items()) == list(zip(lines, rows, strict=True))
    for end in range(3, len(text.rstrip()), 17):
        with pytest.raises(ValueError):
            list(JsonStream(io.StringIO(text[:end])).items())
    assert list(JsonStream(io.StringIO("{}")).items()) == []


@pytest.mark.parametrize("text", ["", " ", "[1]", "3", '"{"'])
def test_a_text_that_is_not_an_object_has_no_members(text):
    assert members(text, 2) == {}


@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_a_text_that_json_refuses_is_refused(piece):
    text = json.dumps(CONTENT, ensure_ascii=True)
    damaged = [text[:end] for end in range(1, len(text), 3)]
    damaged += ['{"a": 1,}', '{"a" 1}', "{1: 2}", '{"images": [1 2]}', '{"images": [1,]}', '{"a": 1} x', '{"a": 1}}']
    for case in damaged:
        with pytest.raises(ValueError):
            json.loads(case)
        with pytest.raises(ValueError):
            members(case, piece)
