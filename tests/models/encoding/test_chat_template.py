"""The prompt of generation is the beginning of the training input for every chat template.

The templates are short equivalents of published ones: of their turns, thoughts and variables, without tools.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from mllm.errors import ConfigError, DataError
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.text_processor import TextProcessor
from mllm.structures import IGNORE, Sample, Turn
from mllm.tiny import templates
from mllm.tiny.parts import add_special_tokens, new
from mllm.tiny.vocabulary import train_bytes

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<s>"]
USER = "{{- '<|im_start|>user\\n' ~ turn.content ~ '<|im_end|>\\n' if turn.role == 'user' -}}"
PLAIN = "{{- '<|im_start|>assistant\\n' ~ turn.content ~ '<|im_end|>\\n' if turn.role == 'assistant' -}}"
LAST_HAS_THOUGHT = """
{%- if turn.role == 'assistant' -%}
    {%- set thought = turn.content.split('</think>')[0].split('<think>')[-1] if '</think>' in turn.content else '' -%}
    {%- set text = turn.content.split('</think>')[-1].lstrip('\\n') -%}
    {{- '<|im_start|>assistant\\n' -}}
    {{- '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' if loop.last -}}
    {{- text ~ '<|im_end|>\\n' -}}
{%- endif -%}"""
WITHOUT_THOUGHT = PLAIN.replace("turn.content", "turn.content.split('</think>')[-1].lstrip('\\n')")


def template(*turns: str, prompt: str) -> str:
    """A template of messages, and of the generation prompt."""
    loop = f"{{%- for turn in messages -%}}{''.join(turns)}{{%- endfor -%}}"
    return f"{loop}{{%- if add_generation_prompt -%}}{prompt}{{%- endif -%}}"


HEADER = "{{- '<|im_start|>assistant\\n' -}}"
TEMPLATES = {
    "ChatML": template(USER, PLAIN, prompt=HEADER),
    "Qwen3": template(
        USER,
        LAST_HAS_THOUGHT,
        prompt=HEADER
        + "{{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false -}}",
    ),
    "Qwen3-Thinking-2507": template(USER, LAST_HAS_THOUGHT, prompt=HEADER + "{{- '<think>\\n' -}}"),
    "QwQ": template(USER, WITHOUT_THOUGHT, prompt=HEADER + "{{- '<think>\\n' -}}"),
    "DeepSeek-R1": template(
        "{{- '<|user|>' ~ turn.content if turn.role == 'user' -}}",
        "{{- '<|assistant|>' ~ turn.content.split('</think>')[-1] ~ '<|im_end|>' if turn.role == 'assistant' -}}",
        prompt="{{- '<|assistant|><think>\\n' -}}",
    ),
    "no generation prompt": template(USER, PLAIN, prompt=""),
    "LLaVA": templates.LLAVA,
    "Qwen2-VL": templates.QWEN2_VL,
}
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def processor() -> TextProcessor:
    vocabulary, merges = train_bytes(TOKENS, size=400)
    tokenizer = new(Qwen2Tokenizer, vocab=vocabulary, merges=merges, eos_token="<|im_end|>")
    add_special_tokens(tokenizer, TOKENS)
    return TextProcessor(tokenizer)


@pytest.fixture(scope="module")
def encoders() -> dict[str, ChatEncoder]:
    cases: dict[str, dict[str, Any]] = {name: {"chat_template": text} for name, text in TEMPLATES.items()}
    cases["Qwen3 without thinking"] = {**cases["Qwen3"], "template_args": {"enable_thinking": False}}
    return {name: ChatEncoder(processor(), max_length=999, **options) for name, options in cases.items()}


def conversation(*texts: str) -> Sample:
    """Questions and answers by turns."""
    return Sample([Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)], source="F, line 2")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co"], exclude_characters="<>|"), min_size=1)


@settings(max_examples=15)
@given(st.lists(TEXTS.map(lambda text: text.strip() or "x"), min_size=2, max_size=4))
def test_a_prompt_begins_the_training_input_and_the_rest_is_supervised(
    encoders: dict[str, ChatEncoder], texts: list[str]
) -> None:
    sample = conversation(*texts[: len(texts) // 2 * 2])
    for name, encoder in encoders.items():
        prompt, encoded = encoder.prompt(sample).student["input_ids"], encoder.encode(sample)
        ids, labels = encoded.student["input_ids"], encoded.targets["labels"]
        assert torch.equal(ids[: len(prompt)], prompt), name
        assert torch.equal(labels[len(prompt) :], ids[len(prompt) :]), name
        answer = ids[len(prompt) :]
        assert encoder.read_answer(answer).text == sample.turns[-1].text.strip(), name
        assert answer[-1] == encoder.turn_end_id, name


@pytest.mark.parametrize(
    ("name", "end_of_prompt", "supervised"),
    [
        ("ChatML", "<|im_start|>assistant\n", "CT<|im_end|>"),
        ("Qwen3", "<|im_start|>assistant\n", f"{EMPTY_THOUGHT}CT<|im_end|>"),
        ("Qwen3 without thinking", f"<|im_start|>assistant\n{EMPTY_THOUGHT}", "CT<|im_end|>"),
        ("Qwen3-Thinking-2507", "<|im_start|>assistant\n<think>\n", "\n</think>\n\nCT<|im_end|>"),
        ("QwQ", "<|im_start|>assistant\n<think>\n", "\n</think>\n\nCT<|im_end|>"),
        ("DeepSeek-R1", "<|assistant|><think>\n", "\n</think>\n\nCT<|im_end|>"),
        ("no generation prompt", "<|im_end|>\n", "<|im_start|>assistant\nCT<|im_end|>"),
    ],
)
def test_an_answer_stands_outside_of_the_thought(
    encoders: dict[str, ChatEncoder], name: str, end_of_prompt: str, supervised: str
) -> None:
    encoder, sample = encoders[name], conversation("Which modality?", "CT")
    encoded = encoder.encode(sample)
    labels = encoded.targets["labels"]
    assert encoder.tokenizer.decode(encoder.prompt(sample).student["input_ids"]).endswith(end_of_prompt)
    assert encoder.tokenizer.decode(labels[labels != IGNORE]) == supervised


@pytest.mark.parametrize("name", ["Qwen3", "QwQ", "Qwen3-Thinking-2507", "DeepSeek-R1"])
def test_a_thought_in_the_data_takes_the_place_of_the_empty_one(encoders: dict[str, ChatEncoder], name: str) -> None:
    encoder = encoders[name]
    sample = conversation("Which modality?", "<think>\nGray, with bones.\n</think>\n\nCT")
    text = encoder.tokenizer.decode(encoder.encode(sample).student["input_ids"])
    assert text.endswith("<think>\nGray, with bones.\n</think>\n\nCT<|im_end|>")
    assert text.count("<think>") == text.count("</think>") == 1


def test_earlier_answers_are_supervised_only_where_generation_would_write_them_so(
    encoders: dict[str, ChatEncoder],
) -> None:
    for name, encoder in encoders.items():
        labels = encoder.encode(conversation("a", "first", "b", "second")).targets["labels"]
        text = encoder.tokenizer.decode(labels[labels != IGNORE])
        assert ("first" in text) == (not name.startswith(("Qwen3", "QwQ", "DeepSeek"))), name
        assert "second" in text, name


def test_a_template_that_drops_a_part_of_an_earlier_answer_is_refused(encoders: dict[str, ChatEncoder]) -> None:
    sample = conversation("a", "<think>t</think>first", "b", "second")
    with pytest.raises(DataError, match="^F, line 2: the chat template leaves out a part of an earlier answer"):
        encoders["QwQ"].encode(sample)


def test_variables_of_a_template_are_set_in_the_exported_template(encoders: dict[str, ChatEncoder]) -> None:
    exported = encoders["Qwen3 without thinking"].tokenizer.chat_template
    stock = encoders["ChatML"].tokenizer
    messages = [{"role": "user", "content": "a"}]
    by_name = dict(tokenize=False, add_generation_prompt=True, chat_template=TEMPLATES["Qwen3"], enable_thinking=False)
    rendered = stock.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, chat_template=exported)
    assert rendered == stock.apply_chat_template(messages, **by_name)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"enable_thinkin": False}, "does not use 'enable_thinkin': did you mean 'enable_thinking'?"),
        ({"reasoning_effort": "low"}, "does not use 'reasoning_effort'; remove it"),
        ({"messages": []}, "'messages' is set for every conversation; remove it"),
    ],
)
def test_unknown_variables_of_a_template_are_refused(variables: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"model_args.template_args: .*{re.escape(problem)}"):
        ChatEncoder(processor(), max_length=99, chat_template=TEMPLATES["Qwen3"], template_args=variables)
