"""Options of generation change the answers of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mllm.models.generation.options import GenerationOptions
from mllm.pipeline.predict import main
from mllm.predict.request import Request
from mllm.structures import Sample, Turn


def test_each_option_changes_the_answer(text_model) -> None:
    sample = Sample([Turn("user", "Why is the heart normal?")])

    def answer(number: int = 0, **options: Any) -> str:
        request = Request(sample, GenerationOptions(max_new_tokens=12, **options), number=number)
        ((found,),) = text_model.answer_all([request])
        return str(found.text)

    greedy, hot = answer(), dict(temperature=9.0, seed=1)
    assert answer(**hot) == answer(**hot) != greedy
    assert answer(1, **hot) != answer(**hot)
    assert answer(**hot, top_k=1) == greedy, "the most probable token alone is the greedy answer"
    assert answer(**hot, top_p=0.001) == greedy
    assert answer(repetition_penalty=0.1) != greedy, "below 1 repetitions become more probable"
    assert answer(temperature=9.0, seed=2) != answer(**hot)


def test_a_text_model_answers_a_question(
    text_model, generating_text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = text_model.ask(None, "Why?", max_new_tokens=5).text
    assert main(["--model", str(generating_text_model), "--question", "Why?", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == expected + "\n"
    assert expected
