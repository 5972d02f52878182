"""Answers of a model as replies of OpenAI's chat completions, whole and in chunks."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mllm.engine.evaluation import mark_fields
from mllm.predict.model_answer import ModelAnswer

if TYPE_CHECKING:
    from mllm.models.generation.requested import TokenProbability


@dataclass(frozen=True)
class Reply:
    """Reply to one request."""

    model: str
    with_logprobs: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[ModelAnswer]) -> dict[str, Any]:
        """Return the reply with all answers."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None, **extra_fields(answer)},
                "finish_reason": answer.end,
                "logprobs": self._logprobs(answer),
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage_of(answers)}

    def opening(self, index: int) -> dict[str, Any]:
        """Return the first chunk of an answer."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """Return the chunk of a piece of an answer."""
        return self._chunk(index, {"content": text})

    def closing(self, index: int, answer: ModelAnswer) -> dict[str, Any]:
        """Return the last chunk of an answer, with its boxes, masks, measures and log probabilities."""
        return self._chunk(index, extra_fields(answer), answer.end, self._logprobs(answer))

    def usage(self, answers: Sequence[ModelAnswer]) -> dict[str, Any]:
        """Return the chunk with the numbers of tokens."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(answers)}

    def _chunk(self, index: int, delta: dict[str, Any], end: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": end, "logprobs": logprobs}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, answer: ModelAnswer) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = [
            {**_token(token), "top_logprobs": [_token(other) for other in token.alternatives]}
            for token in answer.probabilities
        ]
        return {"content": content, "refusal": None}


def extra_fields(answer: ModelAnswer) -> dict[str, Any]:
    """Return the fields of `mark_fields`: boxes, points, masks as run lengths, and measures; NaN is null."""
    fields = mark_fields(answer)
    if "measures" in fields:
        measures = {name: value if math.isfinite(value) else None for name, value in fields["measures"].items()}
        fields["measures"] = measures
    return fields


def usage_of(answers: Sequence[ModelAnswer]) -> dict[str, int]:
    """Return the numbers of tokens of a request."""
    prompt, generated = answers[0].prompt_tokens, sum(answer.tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def event(value: dict[str, Any]) -> str:
    """Return a chunk as an event of a stream."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _token(token: TokenProbability) -> dict[str, Any]:
    # JSON has no infinity; OpenAI's servers write -9999.0 for a token of probability 0.
    logprob = max(token.logprob, -9999.0)
    return {"token": token.text, "logprob": logprob, "bytes": list(token.text.encode("utf-8", "replace"))}
