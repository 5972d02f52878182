"""Options of generation: values out of range are refused with a message."""

from __future__ import annotations

import argparse

import pytest

from mllm.models.generation.options import GenerationOptions
from mllm.pipeline.options import add_generation_options, generation_options


def parsed(*options: str) -> GenerationOptions:
    parser = argparse.ArgumentParser()
    add_generation_options(parser)
    return generation_options(parser, parser.parse_args(options))


def test_defaults_and_values_are_returned() -> None:
    assert parsed() == GenerationOptions()
    options = ["--max-new-tokens", "5", "--batch-size", "6", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "7"]
    expected = GenerationOptions(5, 0.5, 0.9, 7, 1.2, 3)
    assert parsed(*options, "--repetition-penalty", "1.2", "--seed", "3") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-new-tokens", "0"), "'0' is not an integer of at least 1"),
        (("--temperature", "-1"), "--temperature and --top-k must be 0 or more"),
        (("--temperature", "1", "--top-p", "0"), "--top-p above 0"),
        (("--temperature", "1", "--top-k", "-3"), "--top-k must be 0 or more"),
        (("--repetition-penalty", "0"), "--repetition-penalty must be above 0"),
        (("--temperature", "nan"), "--temperature and --top-k must be 0 or more and finite"),
        (("--temperature", "inf"), "--temperature and --top-k must be 0 or more and finite"),
        (("--repetition-penalty", "nan"), "--repetition-penalty must be above 0"),
        (("--seed", "99999999999999999999"), "--seed must be an integer from 0 to 4294967295"),
        (("--seed", "-1"), "--seed must be an integer from 0"),
        (("--top-p", "0.9"), "they require a --temperature above 0"),
        (("--top-k", "5"), "they require a --temperature above 0"),
    ],
)
def test_values_out_of_range_are_refused(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as excinfo:
        parsed(*options)
    assert excinfo.value.code == 2
    assert message in capsys.readouterr().err
