"""Chat template of LLaVA, Shikra and PerceptionGPT: the conversation `vicuna_v1.1`."""

from __future__ import annotations

PREFACE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

_TEMPLATE = r"""
{%- set preface, turns = PREFACE, messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set opening = messages[0]['content'] -%}
    {%- set preface, turns = (opening if opening is string else opening[0]['text']), messages[1:] -%}
{%- endif -%}
{{- preface ~ ' ' -}}
{%- for turn in turns -%}
    {{- turn['role'] | upper ~ ': ' -}}
    {%- if turn['content'] is string -%}
        {{- turn['content'] -}}
    {%- else -%}
        {%- for part in turn['content'] -%}
            {{- IMAGE if part['type'] == 'image' -}}
            {{- part['text'] if part['type'] == 'text' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- END if turn['role'] == 'assistant' else ' ' -}}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt -}}
"""


def vicuna_template(image: str = "<image>\n", end: str = "</s>") -> str:
    """Return the chat template: `PREFACE USER: question ASSISTANT: answer</s>USER: ...`.

    `image` is the text that represents an image, `end` the text after an answer.
    """
    values = {"PREFACE": PREFACE, "IMAGE": image, "END": end}
    head = "".join("{%- set " + f"{name} = {_quoted(value)}" + " -%}" for name, value in values.items())
    return head + _TEMPLATE.strip("\n")


def _quoted(text: str) -> str:
    """Return a text as a Jinja string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
