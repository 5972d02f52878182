"""The part of Go's text/template that the prompts of Ollama need, to render a template without Go.

Knows `{{- -}}` trimming, `range .Messages`, `if`, `else if`, `else`, `end`, variables, fields, strings, `eq` and `ne`.
"""

from __future__ import annotations

import re
from typing import Any

_ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')


def render(template: str, messages: list[dict[str, str]]) -> str:
    """Return the prompt of Ollama for a conversation: `.System` are all system turns, `.Messages` all turns."""
    parts: list[tuple[str, str]] = []
    place, trims = 0, False
    for match in _ACTION.finditer(template):
        text = template[place : match.start()]
        text = text.lstrip() if trims else text
        parts += [("text", text.rstrip() if match[1] else text), ("action", match[2])]
        place, trims = match.end(), bool(match[3])
    parts.append(("text", template[place:].lstrip() if trims else template[place:]))
    system = "\n\n".join(turn["content"] for turn in messages if turn["role"] == "system")
    dot = {"System": system, "Messages": [{"Role": turn["role"], "Content": turn["content"]} for turn in messages]}
    nodes, rest, _ = _block(parts)
    assert not rest
    return _run(nodes, dot, {})


def _block(parts: list[tuple[str, str]]) -> tuple[list[Any], list[tuple[str, str]], str]:
    """Return the nodes up to the `end` or `else` of this block, the tokens after it, and that word."""
    nodes: list[Any] = []
    while parts:
        (kind, text), parts = parts[0], parts[1:]
        if kind == "text":
            nodes.append(text)
        elif text == "end" or text.startswith("else"):
            return nodes, parts, text
        elif text.startswith(("if ", "range ")):
            node, parts = _branch(text, parts)
            nodes.append(node)
        else:
            nodes.append(("do", text, [], []))
    return nodes, parts, ""


def _branch(text: str, parts: list[tuple[str, str]]) -> tuple[Any, list[tuple[str, str]]]:
    """Return a node that begins with `if` or `range`, up to its `end`, and the tokens after it."""
    word, condition = text.split(" ", 1)
    body, parts, closing = _block(parts)
    other: list[Any] = []
    if closing.startswith("else if "):
        node, parts = _branch(closing.removeprefix("else "), parts)
        other = [node]
    elif closing == "else":
        other, parts, _ = _block(parts)
    return (word, condition, body, other), parts


def _run(nodes: list[Any], dot: Any, names: dict[str, Any]) -> str:
    written = ""
    for node in nodes:
        if isinstance(node, str):
            written += node
            continue
        word, text, body, other = node
        if word == "range":
            written += "".join(_run(body, item, names) for item in _value(text, dot, names))
        elif word == "if":
            written += _run(body if _value(text, dot, names) else other, dot, names)
        elif assigned := re.fullmatch(r"(\$\w+) :?= (.+)", text):
            names[assigned[1]] = _value(assigned[2], dot, names)
        else:
            written += str(_value(text, dot, names))
    return written


def _value(text: str, dot: Any, names: dict[str, Any]) -> Any:
    first, *rest = _WORD.findall(text)
    if first in ("eq", "ne"):
        left, right = (_value(word, dot, names) for word in rest)
        return (left == right) == (first == "eq")
    assert not rest, text
    if first.startswith('"'):
        return first[1:-1]
    return names[first] if first.startswith("$") else dot[first.removeprefix(".")]
