"""Chat templates: their variables, and the form in which they write an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mllm.errors import ConfigError, nearest_names

OPEN, CLOSE = "\ue000", "\ue001"
"""Private-use characters that bracket a part of a conversation while the chat template is rendered.

They are removed before the text is tokenized.
"""
THINK, END_OF_THOUGHT = "<think>", "</think>"
"""Delimiters of a thought before an answer in Qwen3, QwQ and DeepSeek-R1."""
OWN_VARIABLES = ("messages", "add_generation_prompt")
"""Variables of a template that the encoder sets."""


def with_variables(template: str | Mapping[str, str], variables: Mapping[str, Any]) -> str | Mapping[str, str]:
    """Return a template that sets some of its variables itself, so that every program renders it alike.

    A checkpoint may have several templates by name, of which conversations use 'default'.

    Raises:
        ConfigError: The template does not use a variable, or the encoder sets it.
    """
    if not isinstance(template, str):
        return {**template, "default": str(with_variables(template["default"], variables))}
    names = set(re.findall(r"[a-z_]\w+", template))
    for name in variables:
        if name in OWN_VARIABLES:
            raise ConfigError(f"model_args.template_args: '{name}' is set for every conversation; remove it")
        if name not in names:
            similar = nearest_names(name, names, count=1)
            end = f": did you mean '{similar[0]}'?" if similar else "; remove it"
            raise ConfigError(f"model_args.template_args: the chat template does not use '{name}'{end}")
    start = "".join(f"{{%- set {name} = {value!r} -%}}" for name, value in variables.items())
    return template if template.startswith(start) else start + template


@dataclass(frozen=True)
class AnswerForm:
    """Form in which a chat template writes an answer after the prompt of generation."""

    opening: str
    """Text between the prompt and the answer, which the model writes: a space for Vicuna, no thought for Qwen3."""
    end: str
    """Text that ends an answer."""
    writes_end: bool
    """True if the template writes `end`."""
    leaves_thought_open: bool
    """True if the prompt ends in `<think>`: the answer begins inside a thought."""
    trains_earlier_answers: bool
    """True if an answer that is followed by other turns has the same text before it as in generation.

    Templates of reasoning models omit the thought of earlier answers, which generation does not.
    """

    def written(self, answer: str) -> str:
        """Return the text that the model writes: opening, answer and end. An answer may begin with its own thought."""
        has_thought = answer.startswith(THINK) and END_OF_THOUGHT in answer
        if has_thought and self.leaves_thought_open:
            return answer.removeprefix(THINK).lstrip("\n") + self.end
        return ("" if has_thought and THINK in self.opening else self.opening) + answer + self.end


def read_answer_form(
    render: Callable[..., str], control_tokens: Collection[str], eos_token: str | None, end: str | None = None
) -> AnswerForm:
    """Return the form of answers in a chat template, from rendered probes.

    Args:
        render: Function (messages, options) -> text of the template.
        control_tokens: Tokens that may end an answer.
        eos_token: End of answers where the template writes none.
        end: End of answers from the config; None: the one that the template writes.

    Raises:
        ConfigError: Neither template nor tokenizer has a token that ends an answer, or the template drops the answer.
    """

    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    answered = [turn("user", "a"), turn("assistant", f"{OPEN}b{CLOSE}")]
    before, _, rest = render(answered).partition(OPEN)
    if CLOSE not in rest:
        raise ConfigError("the chat template does not write the text of an answer: set model_args.chat_template")
    prompt = render(answered[:1], add_generation_prompt=True)
    leaves_thought_open = prompt.rstrip().endswith(THINK)
    if before.startswith(prompt):
        opening = before.removeprefix(prompt)
    else:
        opening = f"\n{END_OF_THOUGHT}\n\n" if leaves_thought_open else ""
    try:
        earlier = render([*answered, turn("user", "c")], add_generation_prompt=True).partition(OPEN)[0]
    except ConfigError:  # a template of one question and one answer
        earlier = ""
    tail = rest.partition(CLOSE)[2]
    if end is None:
        token = min((token for token in control_tokens if token in tail), key=tail.find, default=None)
        if token is None and eos_token is None:
            raise ConfigError("neither chat template nor tokenizer has a token that ends an answer: set turn_end")
        end = str(eos_token) if token is None else tail[: tail.find(token) + len(token)]
    return AnswerForm(opening, end, tail.startswith(end), leaves_thought_open, earlier == prompt + opening)
