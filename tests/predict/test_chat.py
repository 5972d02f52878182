"""A conversation at the terminal: each prompt contains the preceding exchanges in the chat template."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from mllm.models.generation.options import GenerationOptions
from mllm.pipeline.predict import main
from mllm.predict.chat import Conversation, chat
from mllm.predict.library import load
from mllm.structures import Answer, Sample

FEW = ("--max-new-tokens", "6")
OPTIONS = GenerationOptions(max_new_tokens=6)


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def by_transformers(folder: Path, *questions: str) -> list[str]:
    """Return reference answers: the tokenizer's chat template over the growing list of messages, and `generate`."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages, answers = [], []
    for question in questions:
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answers.append(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_each_prompt_contains_the_preceding_exchanges(generating_text_model, monkeypatch, capsys):
    questions = ["What is the heart?", "Why?", "Where is it, and why?"]
    expected = by_transformers(generating_text_model, *questions)
    assert expected[1] != by_transformers(generating_text_model, "Why?")[0], "the history has no effect"
    typed(monkeypatch, questions[0], "", questions[1], questions[2], "/quit", "What?")
    capsys.readouterr()
    assert main(["--model", str(generating_text_model), "--chat", *FEW]) == 0
    assert capsys.readouterr().out.splitlines() == expected


def test_a_conversation_can_be_cleared_and_an_invalid_question_is_ignored(
    text_model, generating_text_model, monkeypatch, capsys, caplog
):
    typed(monkeypatch, "What is the heart?", "/clear", "What <end_of_turn> is it?", "Why?")
    caplog.set_level("WARNING", "mllm.predict")
    chat(text_model, [], OPTIONS)
    first, last = capsys.readouterr().out.splitlines()
    assert (first, last) == (
        *by_transformers(generating_text_model, "What is the heart?"),
        *by_transformers(generating_text_model, "Why?"),
    )
    assert "the question: the text contains the control token '<end_of_turn>'" in caplog.text


def test_an_unknown_command_is_not_a_question(text_model, monkeypatch, capsys, caplog):
    typed(monkeypatch, "/image scan.png", "/quit")
    chat(text_model, [], OPTIONS)
    assert capsys.readouterr().out == ""
    assert "unknown command /image; /clear deletes the conversation; /quit or Ctrl-D ends the program" in caplog.text


def test_the_images_belong_to_the_first_question_also_after_clear(text_model, monkeypatch):
    image, images = Image.new("RGB", (8, 8)), []
    monkeypatch.setattr(Conversation, "ask", lambda self, question, given: images.append(given) or Answer("Yes."))
    typed(monkeypatch, "What is it?", "Why?", "/clear", "What is it?")
    chat(text_model, [image], OPTIONS)
    assert images == [[image], [], [image]]


def test_the_oldest_exchanges_of_a_long_conversation_are_removed(text_model, monkeypatch, caplog):
    prompts: list[Sample] = []
    encoder = text_model.variant().encoder
    real = encoder.prompt

    def prompt(sample):
        prompts.append(sample)
        return real(sample)

    monkeypatch.setattr(encoder, "prompt", prompt)
    conversation = Conversation(text_model, 60, OPTIONS)
    for number in range(6):
        conversation.ask(f"Question {number}: what is the heart?")
        whole = real(conversation.sample(prompts[-1].turns[-1], []))
        assert len(real(prompts[-1])) <= 60 < len(whole) or len(conversation.exchanges) == number + 1
    assert 1 <= len(conversation.exchanges) < 6
    assert prompts[-1].turns[0].text.startswith(f"Question {6 - len(conversation.exchanges)}:")
    assert "oldest exchanges removed" in caplog.text


def test_images_belong_to_the_first_question_and_stay_in_the_prompt(generating_base, monkeypatch, capsys):
    prompts: list[Sample] = []
    model = load(model=generating_base)
    encoder = model.variant().encoder
    real = encoder.prompt

    def prompt(sample):
        prompts.append(sample)
        return real(sample)

    monkeypatch.setattr(encoder, "prompt", prompt)
    typed(monkeypatch, "What is this?", "Why?")
    chat(model, [Image.new("RGB", (30, 30))], OPTIONS)
    assert [(len(sample.turns), len(sample.images)) for sample in prompts[::2]] == [(1, 1), (3, 1)]
    assert prompts[0].turns[0].text == "<image>What is this?"
    assert len(capsys.readouterr().out.splitlines()) == 2
