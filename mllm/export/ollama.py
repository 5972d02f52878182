"""Ollama `Modelfile`: weights, prompt template, end of an answer, generation settings and terms.

Ollama renders Go's text/template. The templates here produce the same text as the chat templates of the models, without
the token that begins a sequence, which llama.cpp adds according to the GGUF file. Unlike Gemma's chat templates, Ollama
does not trim the contents of messages. Syntax: https://docs.ollama.com/modelfile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm.errors import ConfigError

PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "max_new_tokens": "num_predict",
    "seed": "seed",
    "max_length": "num_ctx",
}
"""Name of a generation setting -> its name in Ollama."""


@dataclass(frozen=True)
class ChatFormat:
    """Prompt format of a family of chat models."""

    marker: str
    """A text that only the chat templates of this family contain."""
    template: str
    """The prompt, in Go's template syntax."""
    stops: tuple[str, ...]
    """Texts that end an answer."""


GEMMA = """\
{{- $preface := .System }}
{{- range .Messages }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ if $preface }}{{ $preface }}

{{ end }}{{ .Content }}<end_of_turn>
{{ $preface = "" }}
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}
{{- end }}<start_of_turn>model
"""
"""Gemma 1 to 3n have no system turn: the system text precedes the first question."""

LLAMA3 = """\
{{- if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>
{{- end }}
{{- range .Messages }}
{{- if ne .Role "system" }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- end }}
{{- end }}<|start_header_id|>assistant<|end_header_id|>

"""
"""Llama 3. Later versions write the current date before a conversation, which Ollama's templates cannot do."""

CHAT_FORMATS = {
    "gemma": ChatFormat("<start_of_turn>", GEMMA, ("<end_of_turn>",)),
    "llama3": ChatFormat("<|start_header_id|>", LLAMA3, ("<|eot_id|>", "<|end_of_text|>")),
}
DATED = "date_string"
"""A variable of chat templates that contain the current date."""


def chat_format(chat_template: str | None) -> str:
    """Return the key in `CHAT_FORMATS` for the chat template of a tokenizer; raises `ConfigError` for others."""
    for name, family in CHAT_FORMATS.items():
        if chat_template and family.marker in chat_template and DATED not in chat_template:
            return name
    raise ConfigError(
        f"there is no Ollama template for this model's chat template (known: {', '.join(CHAT_FORMATS)}); write the "
        "Modelfile's TEMPLATE by hand"
    )


def modelfile_text(
    chat: str,
    weights: str,
    *,
    mmproj: str | None = None,
    adapter: str | None = None,
    generation: Mapping[str, Any] | None = None,
    system: str | None = None,
    stops: Sequence[str] = (),
    license_text: str | None = None,
) -> str:
    """Return the text of a `Modelfile`.

    `chat` is a key of `CHAT_FORMATS`. `weights`, `mmproj` (vision tower) and `adapter` (LoRA) are GGUF files relative
    to the Modelfile. `generation` contains keys of `PARAMETERS`; None values are left out. `stops` end an answer in
    addition to those of the chat format. Raises `ConfigError` for what a Modelfile cannot contain.
    """
    known = CHAT_FORMATS[chat]
    lines = [f"FROM {_path(weights)}"]
    lines += [f"FROM {_path(mmproj)}"] if mmproj else []
    lines += [f"ADAPTER {_path(adapter)}"] if adapter else []
    lines += [f"TEMPLATE {_quoted('the template', known.template)}"]
    lines += [f"SYSTEM {_quoted('the system text', system)}"] if system else []
    for name, value in (generation or {}).items():
        if name not in PARAMETERS:
            raise ConfigError(f"Ollama has no parameter for {name}; known are {', '.join(PARAMETERS)}")
        if value is not None:
            lines.append(f"PARAMETER {PARAMETERS[name]} {value}")
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys([*known.stops, *stops])]
    lines += [f"LICENSE {_quoted('the license', license_text)}"] if license_text else []
    return "\n".join(lines) + "\n"


def _path(name: str) -> str:
    """Return a path in a form that Ollama does not interpret as the name of a model in its library."""
    if "\n" in name:
        raise ConfigError(f"a file name must not contain a line break: {name!r}")
    return name if name.startswith(("/", "./", "../")) else f"./{name}"


def _quoted(subject: str, text: str) -> str:
    """Return `text` in triple quotes; raises `ConfigError` if it contains them."""
    if '"""' in text:
        raise ConfigError(f'{subject} contains """, which ends a text in a Modelfile: remove it')
    return f'"""{text}"""'
