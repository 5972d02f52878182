"""A conversation at the terminal: every question is asked with all that was said, through the chat template."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from mllm.pipeline.predict import main, parse
from mllm.predict.chat import Chat, chat
from mllm.structures import Sample

FEW = ("--max-new-tokens", "6")


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def by_transformers(folder: Path, *questions: str) -> list[str]:
    """The oracle: the tokenizer's own template over the growing list of messages, and `generate`; none of our code."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages, said = [], []
    for question in questions:
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        said.append(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
        messages.append({"role": "assistant", "content": said[-1]})
    return said


def test_each_question_is_asked_with_what_was_said_before(tiny_talker, monkeypatch, capsys):
    questions = ["What is the heart?", "Why?", "Where is it, and why?"]
    expected = by_transformers(tiny_talker, *questions)
    assert expected[1] != by_transformers(tiny_talker, "Why?")[0], "the history changes nothing"
    typed(monkeypatch, questions[0], "", questions[1], questions[2], "/quit", "What?")
    capsys.readouterr()
    assert main(["--model", str(tiny_talker), "--chat", *FEW]) == 0
    assert capsys.readouterr().out.splitlines() == expected


def test_what_was_said_can_be_cleared_and_a_question_that_cannot_be_asked_is_left_out(
    text_bundle, tiny_talker, monkeypatch, capsys, caplog
):
    typed(monkeypatch, "What is the heart?", "/clear", "What <end_of_turn> is it?", "Why?")
    caplog.set_level("WARNING", "mllm.pipeline.predict")
    chat(text_bundle, [], parse(["--model", "m", "--chat", *FEW]))
    first, last = capsys.readouterr().out.splitlines()
    assert (first, last) == (*by_transformers(tiny_talker, "What is the heart?"), *by_transformers(tiny_talker, "Why?"))
    assert "the question: the text holds the control token '<end_of_turn>'" in caplog.text


def test_what_is_too_long_is_forgotten_from_its_begin(text_bundle, monkeypatch, caplog):
    arguments = parse(["--model", "m", "--chat", *FEW])
    asked: list[Sample] = []
    real = text_bundle.encoder.prompt

    def prompt(sample):
        asked.append(sample)
        return real(sample)

    monkeypatch.setattr(text_bundle.encoder, "prompt", prompt)
    talk = Chat(text_bundle, limit=60)
    for number in range(6):
        talk.ask(f"Question {number}: what is the heart?", [], arguments)
        whole = real(talk._conversation(asked[-1].turns[-1], []))
        assert len(real(asked[-1])) <= 60 < len(whole) or len(talk.said) == number + 1
    assert 1 <= len(talk.said) < 6
    assert asked[-1].turns[0].text.startswith(f"Question {6 - len(talk.said)}:")
    assert "forgotten from its begin" in caplog.text


def test_images_are_shown_with_the_first_question_and_stay(talking_base, monkeypatch, capsys):
    from mllm.config.schema import ModelArgs
    from mllm.predict.load import best_hardware, load_for_answers

    bundle = load_for_answers(ModelArgs("medgemma", str(talking_base), lora_r=None), best_hardware())
    shown: list[Sample] = []
    real = bundle.encoder.prompt

    def prompt(sample):
        shown.append(sample)
        return real(sample)

    monkeypatch.setattr(bundle.encoder, "prompt", prompt)
    typed(monkeypatch, "What is this?", "Why?")
    chat(bundle, [Image.new("RGB", (30, 30))], parse(["--model", "m", "--chat", *FEW]))
    assert [(len(sample.turns), len(sample.images)) for sample in shown[::2]] == [(1, 1), (3, 1)]
    assert shown[0].turns[0].text == "<image>What is this?"
    assert len(capsys.readouterr().out.splitlines()) == 2
