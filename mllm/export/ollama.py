"""An Ollama `Modelfile`: the weights, how a conversation becomes a prompt, what ends an answer, and the terms.

Ollama renders Go's text/template; what is rendered here is what the family's own chat template renders, without the
token that begins a sequence, which llama.cpp adds as the GGUF file says. Ollama passes contents as they are, where the
chat templates of Gemma trim them. Syntax: https://docs.ollama.com/modelfile.
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
"""Our names of settings -> Ollama's."""


@dataclass(frozen=True)
class ChatFamily:
    """How the models of one family converse."""

    marker: str
    """A text that the chat templates of this family alone have."""
    template: str
    """The prompt, in Go's template syntax."""
    stops: tuple[str, ...]
    """What ends an answer."""


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
"""Gemma 1 to 3n have no turn of the system: what it says stands before the first question."""

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
"""Llama 3. Later ones write the date of the day before every conversation, which no template of Ollama's can."""

FAMILIES = {
    "gemma": ChatFamily("<start_of_turn>", GEMMA, ("<end_of_turn>",)),
    "llama3": ChatFamily("<|start_header_id|>", LLAMA3, ("<|eot_id|>", "<|end_of_text|>")),
}
DATED = "date_string"
"""In chat templates that write the date of the day."""


def chat_family(chat_template: str | None) -> str:
    """Which of `FAMILIES` a tokenizer's chat template belongs to; raises `ConfigError` for others."""
    for name, family in FAMILIES.items():
        if chat_template and family.marker in chat_template and DATED not in chat_template:
            return name
    raise ConfigError(
        f"there is no Ollama template for this model's chat template (known: {', '.join(FAMILIES)}); write the "
        "Modelfile's TEMPLATE by hand"
    )


def modelfile(
    family: str,
    weights: str,
    *,
    mmproj: str | None = None,
    adapter: str | None = None,
    settings: Mapping[str, Any] | None = None,
    system: str | None = None,
    stops: Sequence[str] = (),
    license_text: str | None = None,
) -> str:
    """The text of a `Modelfile`.

    `weights` is a GGUF file, `mmproj` that of the vision tower and `adapter` that of a LoRA, each as seen from the
    Modelfile; `settings` are generation settings under the names of `PARAMETERS`, those that are None left out;
    `stops` end an answer beside what ends it in the family. Raises `ConfigError` for what a Modelfile cannot say.
    """
    known = FAMILIES[family]
    lines = [f"FROM {_path(weights)}"]
    lines += [f"FROM {_path(mmproj)}"] if mmproj else []
    lines += [f"ADAPTER {_path(adapter)}"] if adapter else []
    lines += [f"TEMPLATE {_quoted('the template', known.template)}"]
    lines += [f"SYSTEM {_quoted('the system text', system)}"] if system else []
    for name, value in (settings or {}).items():
        if name not in PARAMETERS:
            raise ConfigError(f"Ollama has no parameter for {name}; known are {', '.join(PARAMETERS)}")
        if value is not None:
            lines.append(f"PARAMETER {PARAMETERS[name]} {value}")
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys([*known.stops, *stops])]
    lines += [f"LICENSE {_quoted('the license', license_text)}"] if license_text else []
    return "\n".join(lines) + "\n"


def _path(name: str) -> str:
    """A file beside the Modelfile; Ollama would take a bare name for that of a model in its library."""
    if "\n" in name:
        raise ConfigError(f"a file's name must be one line: {name!r}")
    return name if name.startswith(("/", "./", "../")) else f"./{name}"


def _quoted(what: str, text: str) -> str:
    if '"""' in text:
        raise ConfigError(f'{what} holds """, which ends a text in a Modelfile: remove it')
    return f'"""{text}"""'
