"""Requests of OpenAI's chat completions as requests to a model."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from mllm.dataset.readers.pixel_limit import counted_pixels
from mllm.errors import hint
from mllm.models.generation.options import GenerationOptions
from mllm.options import broken_bound, fits, invalid_value
from mllm.predict.inputs import READER_OPTIONS
from mllm.predict.request import Request
from mllm.serve.attachments import content_of_base64, content_of_url, read_content, read_series
from mllm.serve.limits import Limits, RequestError
from mllm.structures import IMAGE, Sample, Turn

DEFAULT_TOKENS = 512
"""Maximum number of generated tokens of requests that set none."""
SEEDS = 2**63
"""Seeds are below this value in magnitude."""
_FIELDS: dict[str, tuple[Any, dict[str, float]]] = {
    "model": (str, {}),
    "messages": (list, {}),
    "stream": (bool | None, {}),
    "stream_options": (dict | None, {}),
    "n": (int | None, {"minimum": 1}),
    "temperature": (float | None, {"minimum": 0, "maximum": 100}),
    "top_p": (float | None, {"above": 0, "maximum": 1}),
    "top_k": (int | None, {"minimum": 0}),
    "repetition_penalty": (float | None, {"above": 0, "maximum": 100}),
    "max_tokens": (int | None, {"minimum": 1}),
    "max_completion_tokens": (int | None, {"minimum": 1}),
    "seed": (int | None, {"above": -SEEDS, "below": SEEDS}),
    "stop": (str | list | None, {}),
    "logprobs": (bool | None, {}),
    "top_logprobs": (int | None, {"minimum": 0, "maximum": 20}),
}
"""Fields of a request with their types and bounds."""
_WITHOUT_EFFECT = frozenset({"user", "metadata", "store", "safety_identifier", "service_tier"})
"""Fields of OpenAI's clients about the sender, which do not change an answer."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "modalities": (None, ["text"]),
}
"""Fields that this server does not support, with the values that have no effect."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class ChatRequest:
    """A request of a client."""

    request: Request
    streams: bool
    with_usage: bool
    """The last chunk of a stream has the numbers of tokens."""
    with_logprobs: bool
    kept: dict[str, Any]
    """The request without contents of files, for `--keep`."""


def parse_chat(
    body: Mapping[str, Any], uploads: Mapping[str, bytes], models: Sequence[str], limits: Limits
) -> ChatRequest:
    """Return the request in the body of a chat completion; its images are decoded.

    Args:
        body: The JSON object.
        uploads: Files of a multipart request by name.
        models: Names of the models.
        limits: Limits of requests.

    Raises:
        RequestError: A field is unknown or has a wrong value, or an image cannot be used.
    """
    _check_fields(body)
    model = body.get("model")
    if model not in models:
        raise RequestError(f"there is no model '{model}'{hint(str(model), models)}", 404)
    options = _options(body, limits)
    n = body.get("n") or 1
    if n > limits.answers:
        raise RequestError(f"n is {n}, and the limit of this server is {limits.answers}: send several requests")
    if not body["messages"]:
        raise RequestError("messages is empty: send at least one message of the user")
    reader = _Messages(uploads, limits)
    turns = [reader.turn(message, f"messages[{index}]") for index, message in enumerate(body["messages"])]
    if turns[-1].role != "user":
        raise RequestError("the last message must be one of the user")
    for index, turn in enumerate(turns):
        if turn.role == "system" and index > 0:
            raise RequestError(f"messages[{index}] is a system message: it must be the first message, as in training")
        if turn.role == "user" and not turn.text.strip():
            raise RequestError(f"messages[{index}] is empty: write a text, or send an image")
    sample = Sample(turns, reader.images, reader.views, source="the conversation")
    kept = {name: value for name, value in body.items() if name != "messages"}
    streams = bool(body.get("stream"))
    return ChatRequest(
        Request(sample, options, str(model), n),
        streams,
        bool((body.get("stream_options") or {}).get("include_usage")),
        bool(body.get("logprobs")),
        {**kept, "messages": [{"role": turn.role, "content": turn.text} for turn in turns], "images": reader.kept},
    )


def _check_fields(body: Mapping[str, Any]) -> None:
    """Raise `RequestError` for an unknown field, a value of the wrong type and a value out of range."""
    for name, value in body.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise RequestError(f"this server does not support {name}: remove it")
            continue
        if name in _WITHOUT_EFFECT:
            continue
        if name not in _FIELDS:
            raise RequestError(f"there is no field '{name}'{hint(name, _FIELDS)}")
        annotation, bounds = _FIELDS[name]
        if not fits(value, annotation):
            raise RequestError(f"{name} {invalid_value(value, annotation)[:200]}")
        if (bound := broken_bound(value, bounds)) is not None:
            raise RequestError(f"{name} must be {bound}, not {value}")
    _refuse_unknown(body.get("stream_options") or {}, {"include_usage", "include_obfuscation"}, "stream_options")
    if body.get("stream_options") and not body.get("stream"):
        raise RequestError("stream_options requires stream=true")
    for name in ("model", "messages"):
        if name not in body:
            raise RequestError(f"the field '{name}' is missing")


def _options(body: Mapping[str, Any], limits: Limits) -> GenerationOptions:
    """Return the options of generation of a request."""
    tokens = body.get("max_completion_tokens") or body.get("max_tokens")
    if body.get("max_tokens") not in (None, tokens):
        raise RequestError("max_tokens and max_completion_tokens differ: send one of them")
    if tokens is not None and tokens > limits.tokens:
        raise RequestError(f"max_tokens is {tokens}, and the limit of this server is {limits.tokens}")
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else list(stop)
    if len(stops) > 16 or not all(isinstance(text, str) and text for text in stops):
        raise RequestError("stop must be a text or a list of at most 16 texts that are not empty")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise RequestError("top_logprobs requires logprobs=true")
    seed = body.get("seed")
    return GenerationOptions(
        max_new_tokens=tokens or min(DEFAULT_TOKENS, limits.tokens),
        temperature=float(body.get("temperature") or 0),
        top_p=float(body.get("top_p") or 1),
        top_k=body.get("top_k") or 0,
        repetition_penalty=float(body.get("repetition_penalty") or 1),
        seed=secrets.randbits(32) if seed is None else seed,
        stop=tuple(stops),
        top_logprobs=(body.get("top_logprobs") or 0) if body.get("logprobs") else None,
    )


@dataclass(frozen=True)
class _File:
    """File of a part of a message."""

    content: bytes
    name: str | None
    options: Mapping[str, Any]
    where: str
    view: Any
    series: str | None
    """Name that the files of a series have in common; None: it is a file by itself."""


class _Messages:
    """Reader of messages, which collects their images."""

    def __init__(self, uploads: Mapping[str, bytes], limits: Limits) -> None:
        self.uploads, self.limits = uploads, limits
        self.images: list[Image] = []
        self.views: list[str] = []
        self.kept: list[dict[str, Any]] = []
        """Size and options of each file."""

    def turn(self, message: Any, where: str) -> Turn:
        """Return a message as a turn."""
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(f"{where} must be an object with the role system, user or assistant")
        role, content = _ROLES[role], message.get("content")
        _refuse_unknown(message, {"role", "content", "name", "refusal", *_ANSWER_FIELDS}, where)
        if isinstance(content, str):
            return Turn(role, self._text(content, f"{where}.content"))  # type: ignore[arg-type]
        if not isinstance(content, list) or not content:
            raise RequestError(f"{where}.content must be a text or a list of parts")
        series: dict[str, list[_File]] = {}
        texts = [self._part(part, role, f"{where}.content[{index}]", series) for index, part in enumerate(content)]
        for index, text in enumerate(texts):
            if isinstance(text, _File) and text.series is None:
                texts[index] = IMAGE * self._add(text, [text])
            elif isinstance(text, _File):
                files = series.pop(str(text.series), None)
                texts[index] = "" if files is None else IMAGE * self._add(text, files)
        return Turn(role, "".join(map(str, texts)))  # type: ignore[arg-type]

    def _part(self, part: Any, role: str, where: str, series: dict[str, list[_File]]) -> str | _File:
        """Return the text or the file of a part, and add files to their series."""
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            _refuse_unknown(part, {"type", "text"}, where)
            return self._text(part.get("text"), f"{where}.text")
        if kind not in ("image_url", "file"):
            raise RequestError(f"{where} must be an object of the type text, image_url or file")
        if role != "user":
            raise RequestError(f"{where}: only messages of the user can have images")
        _refuse_unknown(part, {"type", kind}, where)
        source = part.get(kind)
        if not isinstance(source, Mapping):
            raise RequestError(f"{where}.{kind} must be an object")
        file = self._file(source, kind, f"{where}.{kind}")
        if file.series is not None:
            members = series.setdefault(file.series, [])
            members.append(file)
            if len(members) > 1 and (file.options or file.view):
                raise RequestError(f"{file.where}: options of a series stand in its first part: move them there")
        return file

    def _file(self, source: Mapping[str, Any], kind: str, where: str) -> _File:
        """Return the file of a part with its options."""
        own = {"url", "detail"} if kind == "image_url" else {"filename", "file_data"}
        _refuse_unknown(source, {*own, "view", "series", *READER_OPTIONS}, where)
        for field in ("filename", "series"):
            if source.get(field) is not None and not isinstance(source[field], str):
                raise RequestError(f"{where}.{field} must be a text")
        name = source.get("filename")
        options = {option: source[option] for option in READER_OPTIONS if source.get(option) is not None}
        content = self._content(source, kind, name, where)
        return _File(content, name, options, where, source.get("view"), source.get("series"))

    def _add(self, first: _File, files: Sequence[_File]) -> int:
        """Read the images of a file, or of the files of a series, and return their number."""
        where = first.where
        left = self.limits.pixels - sum(counted_pixels(image.width, image.height) for image in self.images)
        if first.series is None:
            images = read_content(first.content, first.name, first.options, where, left)
        else:
            images = read_series([file.content for file in files], first.options, where, left)
        self.images += images
        if len(self.images) > self.limits.images:
            limit = f"{self.limits.images} images, the limit of this server"
            raise RequestError(f"{where} exceeds {limit}: send fewer", 413)
        if first.view is not None:
            if len(images) != 1:
                raise RequestError(f"{where}: a view is one image, and the file has {len(images)}: select one")
            self.views.append(str(first.view))
        size = sum(len(file.content) for file in files)
        self.kept.append({"bytes": size, "files": len(files), "images": len(images), **first.options})
        return len(images)

    def _content(self, source: Mapping[str, Any], kind: str, name: str | None, where: str) -> bytes:
        """Return the bytes of a file."""
        if kind == "image_url":
            return content_of_url(source.get("url"), f"{where}.url")
        data = source.get("file_data")
        if isinstance(data, str):
            is_url = data.startswith("data:") or "://" in data[:10]
            return (content_of_url if is_url else content_of_base64)(data, f"{where}.file_data")
        if name not in self.uploads:
            raise RequestError(f"{where}: there is neither file_data nor an uploaded file of this name")
        return self.uploads[str(name)]

    def _text(self, text: Any, where: str) -> str:
        if not isinstance(text, str):
            raise RequestError(f"{where} must be a text")
        if IMAGE in text:
            raise RequestError(f"{where} contains {IMAGE}, which stands for an image: send images as parts of content")
        return text


_ANSWER_FIELDS = ("boxes", "box_images", "points", "masks", "mask_boxes", "unreadable", "measures")
"""Fields of this server's messages besides those of OpenAI, which clients send back with a conversation."""


def _refuse_unknown(value: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise `RequestError` for a field that has no meaning and is not null."""
    for name, inner in value.items():
        if name not in known and inner is not None:
            raise RequestError(f"{where} has no field '{name}'{hint(name, sorted(known))}")
