"""Generation of answers with options of their own: sampling, length, stop texts, probabilities, and pieces of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor, StoppingCriteria

from mllm.models.encoding.text_encoder import TextEncoder
from mllm.models.generation.generate import Control, Generation, text_encoder_of
from mllm.models.generation.options import GenerationOptions
from mllm.models.generation.sampling import SeededSampler, generator_of, warpers
from mllm.protocols import Bundle
from mllm.structures import Answer, Encoded, Mark

End = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenProbability:
    """Generated token with its probability before sampling options change it."""

    id: int
    text: str
    """Text of the token alone."""
    logprob: float
    """Natural logarithm of the probability."""
    alternatives: tuple[TokenProbability, ...] = ()
    """Most probable tokens in its place, in order."""


@dataclass
class GeneratedText:
    """Text of one answer while it is generated."""

    options: GenerationOptions
    number: int = 0
    """Number from which, with the seed, the random numbers are derived."""
    on_text: Callable[[str], None] | None = None
    """Function that receives each piece of the text; the pieces joined are the answer."""
    is_cancelled: Callable[[], bool] | None = None
    """Function that returns True if nobody waits for the answer any more; it is called before each token."""
    tokens: list[int] = field(default_factory=list)
    """Generated tokens without the end of the turn."""
    count: int = 0
    """Number of generated tokens with the end of the turn."""
    probabilities: list[TokenProbability] = field(default_factory=list)
    end: End | None = None
    """Reason why the answer ended: it is complete, it has its maximum length, or it was cancelled."""
    sent: str = ""
    """Text that `on_text` has received."""
    stop_at: int | None = None
    """Position of the first stop text in the text of the tokens."""

    def add(self, token: int, is_end: bool, encoder: TextEncoder) -> None:
        """Append a token, and find out if the answer ends with it."""
        self.count += 1
        if is_end:
            self.end = "stop"
            return
        self.tokens.append(token)
        if self.options.stop or self.on_text is not None:
            self._read(encoder)
        if self.end is None and self.count >= self.options.max_new_tokens:
            self.end = "length"
        if self.end is None and self.is_cancelled is not None and self.is_cancelled():
            self.end = "cancelled"

    def text(self, encoder: TextEncoder) -> str:
        """Return the text of the answer, with the texts of boxes and objects."""
        text = encoder.text_in(self.tokens)
        return text if self.stop_at is None else text[: self.stop_at].rstrip()

    def finish(self, text: str) -> None:
        """Send the rest of the final text."""
        if self.on_text is not None and (piece := text.removeprefix(self.sent)):
            self.on_text(piece)
            self.sent = text

    def _read(self, encoder: TextEncoder) -> None:
        """Find stop texts in the text so far, and send its new part that later tokens cannot change."""
        text: str | None = None
        if self.options.stop:
            text = encoder.text_in(self.tokens)
            found = [position for stop in self.options.stop if (position := text.find(stop)) >= 0]
            if found:
                self.stop_at, self.end = min(found), "stop"
                return
        if self.on_text is None:
            return
        tokens = encoder.settled_tokens(self.tokens)
        if text is None or len(tokens) < len(self.tokens):
            text = encoder.text_in(tokens)
        settled = encoder.settled(text[: len(text) - _begun(text, self.options.stop)])
        if len(settled) > len(self.sent) and settled.startswith(self.sent):
            self.on_text(settled[len(self.sent) :])
            self.sent = settled


def _begun(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of a text with which a stop text begins."""
    lengths = (length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length]))
    return max(lengths, default=0)


@dataclass(frozen=True)
class RequestedGeneration(Generation):
    """Generation whose prompts have options of their own. An answer is equal alone and in a batch.

    The numbers of prompts are the keys of `texts`.
    """

    texts: Mapping[int, GeneratedText] = field(default_factory=dict)

    @classmethod
    def for_texts(cls, bundle: Bundle, texts: Mapping[int, GeneratedText], batch_size: int) -> RequestedGeneration:
        """Return the generation of these texts."""
        plain = Generation.of(bundle, batch_size=batch_size)
        return cls(**vars(plain), texts=texts)

    def control(self, begin: int, numbers: Sequence[int]) -> Control:
        """Return the options of a batch of prompts. `begin` is the position of the first generated token."""
        texts = [self.texts[number] for number in numbers]
        options = copy(self.options)
        options.max_new_tokens = max(text.options.max_new_tokens for text in texts)
        scores = _Scores([text.options.top_logprobs for text in texts])
        ends = _Ends(texts, set(options.eos_token_id), text_encoder_of(self.bundle), scores)
        return Control(options, [scores, _RowProcessors(texts, begin)], [ends])

    def read(self, generated_L: Tensor, number: int, prompt: Encoded, marks: Sequence[Mark]) -> Answer:
        """Return the answer to a prompt, and send the rest of its text."""
        text, encoder = self.texts[number], text_encoder_of(self.bundle)
        answer = replace(encoder.read_text(text.text(encoder), prompt.frames, marks), tokens=text.count)
        text.finish(answer.text)
        return answer


class _RowProcessors(LogitsProcessor):
    """Changes of the logits by the options of each row; rows with equal options are computed together."""

    def __init__(self, texts: Sequence[GeneratedText], begin: int) -> None:
        groups: dict[tuple[float, ...], list[int]] = {}
        for row, text in enumerate(texts):
            options = text.options
            key = (options.temperature, options.top_p, options.top_k, options.repetition_penalty)
            groups.setdefault(key, []).append(row)
        self.groups = [(rows, _processors([texts[row] for row in rows], begin)) for rows in groups.values()]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the changed logits [B, vocabulary]."""
        changed = scores.clone()
        for rows, processors in self.groups:
            part = scores[rows]
            for processor in processors:
                part = processor(input_ids[rows], part)
            changed[rows] = part
        return changed


def _processors(texts: Sequence[GeneratedText], begin: int) -> list[LogitsProcessor]:
    """Return the processors of rows whose options, besides the seed, are equal."""
    options = texts[0].options
    processors: list[LogitsProcessor] = []
    if options.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty), begin))
    if options.temperature > 0:
        processors += warpers(float(options.temperature), options.top_p, options.top_k)
        processors.append(SeededSampler([generator_of(text.options.seed, text.number) for text in texts]))
    return processors


class _Scores(LogitsProcessor):
    """Log probabilities of the next token in the rows that return them, before other processors change the logits."""

    def __init__(self, counts: Sequence[int | None]) -> None:
        self.rows = [row for row, count in enumerate(counts) if count is not None]
        self.largest = max((count or 0 for count in counts), default=0)
        self.logprobs: Tensor | None = None
        """[X, vocabulary] for the X rows in `rows`."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits [B, vocabulary] unchanged."""
        if self.rows:
            self.logprobs = scores[self.rows].float().log_softmax(dim=-1)
        return scores

    def of(self, tokens_B: Tensor) -> dict[int, tuple[float, list[float], list[int]]]:
        """Return for each row: log probability of its token, those of the most probable tokens, and their ids."""
        if self.logprobs is None:
            return {}
        chosen = self.logprobs.gather(1, tokens_B[self.rows][:, None])[:, 0].tolist()
        top = self.logprobs.topk(self.largest, dim=-1)
        values = zip(chosen, top.values.tolist(), top.indices.tolist(), strict=True)
        return dict(zip(self.rows, values, strict=True))


class _Ends(StoppingCriteria):
    """Ends of the answers of a batch; it passes each token to its text."""

    def __init__(self, texts: Sequence[GeneratedText], stops: set[int], encoder: TextEncoder, scores: _Scores) -> None:
        self.texts, self.stops, self.encoder, self.scores = texts, stops, encoder, scores

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        """Return True for each answer [B] that has ended."""
        tokens_B = input_ids[:, -1]
        probabilities = self.scores.of(tokens_B)
        for row, (text, token) in enumerate(zip(self.texts, tokens_B.tolist(), strict=True)):
            if text.end is not None:
                continue
            text.add(token, token in self.stops, self.encoder)
            if row in probabilities and token not in self.stops:
                text.probabilities.append(self._probability(text, token, *probabilities[row]))
        return torch.tensor([text.end is not None for text in self.texts], device=input_ids.device)

    def _probability(
        self, text: GeneratedText, token: int, logprob: float, values: Sequence[float], ids: Sequence[int]
    ) -> TokenProbability:
        pairs = zip(ids[: text.options.top_logprobs], values, strict=False)
        others = (TokenProbability(other, self._text_of(other), value) for other, value in pairs)
        return TokenProbability(token, self._text_of(token), logprob, tuple(others))

    def _text_of(self, token: int) -> str:
        return str(self.encoder.tokenizer.decode([token]))
