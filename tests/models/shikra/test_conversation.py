"""The conversation `vicuna_v1.1` equals the published one."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from mllm.models.shikra.conversation import vicuna_template

PREFACE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


def rendered(tiny_llama, messages, generate=False, **values) -> str:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    return tokenizer.apply_chat_template(
        messages, chat_template=vicuna_template(**values), tokenize=False, add_generation_prompt=generate
    )


def published(*turns: tuple[str, str | None]) -> str:
    """Return the text of FastChat's ADD_COLON_TWO: a space after user turns, `</s>` after assistant turns."""
    text = PREFACE + " "
    for number, (role, words) in enumerate(turns):
        text += f"{role}: {words}{(' ', '</s>')[number % 2]}" if words is not None else f"{role}:"
    return text


def test_it_renders_as_published(tiny_llama):
    question, answer = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}
    known = (("USER", "Where?"), ("ASSISTANT", "There."))
    assert rendered(tiny_llama, [question, answer] * 2) == published(*known, *known)
    assert rendered(tiny_llama, [question, answer, question], generate=True) == published(
        *known, known[0], ("ASSISTANT", None)
    )


@pytest.mark.parametrize(
    ("image", "words"),
    [("<image>\n", "<image>\nWhere?"), ("<im_start><im_patch><im_end> ", "<im_start><im_patch><im_end> Where?")],
)
def test_an_image_is_written_at_its_position(tiny_llama, image, words):
    parts = [{"type": "image"}, {"type": "text", "text": "Where?"}]
    assert rendered(tiny_llama, [{"role": "user", "content": parts}], image=image) == published(("USER", words))


@pytest.mark.parametrize("content", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_a_system_text_replaces_the_preface(tiny_llama, content):
    messages = [{"role": "system", "content": content}, {"role": "user", "content": "Where?"}]
    assert rendered(tiny_llama, messages) == "Be brief. USER: Where? "


def test_any_text_can_represent_an_image(tiny_llama):
    image = "\"quoted\" \\ {{ 'x' }}\n"
    assert image in rendered(tiny_llama, [{"role": "user", "content": [{"type": "image"}]}], image=image)
