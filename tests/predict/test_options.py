"""Options of generation that mean nothing are refused, and those that do reach the model."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from mllm.pipeline.predict import main
from mllm.predict.options import add_speaking, answers, check_speaking
from mllm.structures import Sample, Turn


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_speaking(parser)
    arguments = parser.parse_args(options)
    check_speaking(parser, arguments)
    return arguments


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-new-tokens", "0"), "'0' is no whole number"),
        (("--temperature", "-1"), "--temperature and --top-k must be 0 or more"),
        (("--temperature", "1", "--top-p", "0"), "--top-p above 0"),
        (("--temperature", "1", "--top-k", "-3"), "--top-k must be 0 or more"),
        (("--repetition-penalty", "0"), "--repetition-penalty must be above 0"),
        (("--temperature", "nan"), "--temperature and --top-k must be 0 or more and finite"),
        (("--temperature", "inf"), "--temperature and --top-k must be 0 or more and finite"),
        (("--repetition-penalty", "nan"), "--repetition-penalty must be above 0"),
        (("--seed", "99999999999999999999"), "--seed must be a whole number from 0 to 4294967295"),
        (("--seed", "-1"), "--seed must be a whole number from 0"),
        (("--top-p", "0.9"), "set a --temperature above 0 with them"),
        (("--top-k", "5"), "set a --temperature above 0 with them"),
    ],
)
def test_what_means_nothing_is_said_in_words(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str):
    with pytest.raises(SystemExit) as caught:
        parsed(*options)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_every_option_changes_what_is_said(text_bundle) -> None:
    asked = [Sample([Turn("user", "Why is the heart normal?")])]

    def said(*options: str, shift: int = 0) -> str:
        return answers(text_bundle, asked, parsed("--max-new-tokens", "12", *options), shift)[0].text

    greedy, hot = said(), ("--temperature", "9", "--seed", "1")
    assert said(*hot) == said(*hot) != greedy
    assert said(*hot, shift=1) != said(*hot)
    assert said(*hot, "--top-k", "1") == greedy, "the likeliest alone is the greedy answer"
    assert said(*hot, "--top-p", "0.001") == greedy
    assert said("--repetition-penalty", "0.1") != greedy, "below 1 it says the same again"
    assert said("--temperature", "9", "--seed", "2") != said(*hot)


def test_a_model_of_text_answers_a_question(text_bundle, tiny_talker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = answers(text_bundle, [Sample([Turn("user", "Why?")])], parsed("--max-new-tokens", "5"))[0].text
    assert main(["--model", str(tiny_talker), "--question", "Why?", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == expected + "\n"
    assert expected
