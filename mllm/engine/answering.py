"""Sources of answers to the samples of a split, such as a model in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from mllm.engine.feature_computer import FeatureComputer
from mllm.engine.option_scores import candidates_of, score_sample
from mllm.engine.shared_scores import score_sharing
from mllm.errors import ConfigError, DataError
from mllm.models.generation import generate as generation
from mllm.models.generation.answers import BATCH_SIZE, measure_batch
from mllm.models.generation.shared_prompts import shares_tokens
from mllm.protocols import Bundle
from mllm.structures import Answer, Sample

GENERATION, OPTIONS = "generation", "options"
"""Values of the option `scoring` of an evaluation."""
SCORED_WINDOW = 32
"""Number of rows that are read before their options are scored."""
DIGESTED = 1000
"""Number of evenly spaced values of a tensor that the digest of a model contains."""
UNIMPORTANT = ("batch_size", "progress", "share_images")
"""Options of generation that change answers by rounding at most."""

Answers = Mapping[int, Answer | DataError]
"""Index of a row -> its answer, or the error of a row that cannot be answered."""


class Answerer(Protocol):
    """Source of the answers to the samples of a split: a model, or a server.

    An answer depends on its sample, the index of its row and the options only, not on other samples.
    """

    window: int
    """Maximum number of rows that are passed to `answers` together."""
    has_scores: bool
    """True if options are scored instead of generated, so that answers have probabilities."""
    shares_images: bool
    """True if questions about equal images are computed together, so that they belong into one window."""

    def check(self, sample: Sample) -> None:
        """Raise `UserError` if the sample cannot be answered."""

    def reference(self, sample: Sample) -> Answer:
        """Return the reference of a sample in the form of the answers."""

    def answers(self, samples: Mapping[int, Sample], answered: Container[int]) -> Iterator[Answers]:
        """Yield the answers to the samples of a window as they come.

        Args:
            samples: Index of the row -> sample, for all usable rows of the window.
            answered: Indices of rows that need no answer; their answers may be yielded nevertheless.
        """

    def fingerprint(self) -> dict[str, str]:
        """Return a digest of everything besides the samples that the answers depend on, by its name in messages."""


class ModelAnswers:
    """Answers of a model: generated text, predicted measures, or the most probable option of a question.

    Args:
        bundle: Model and encoder.
        checks_prompts: Encode the prompt of a row when the row is read, so that an error has the number of its row.
        settings: Settings of the encoder, for the fingerprint.
        scoring: 'options' compares the likelihoods of options instead of generating an answer.
        choices: Options of questions that list none.
        options: Options of `Generation.of`.

    Raises:
        ConfigError: `scoring` has another value.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        checks_prompts: bool = False,
        settings: Mapping[str, Any] | None = None,
        scoring: str = GENERATION,
        choices: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if scoring not in (GENERATION, OPTIONS):
            raise ConfigError(f"data_args.gen_kwargs.scoring must be '{GENERATION}' or '{OPTIONS}', not {scoring!r}")
        for key in ("progress", "scales"):  # for callers
            options.pop(key, None)
        self.bundle, self.checks_prompts, self.settings = bundle, checks_prompts, settings or {}
        self.has_scores, self.choices, self.options = scoring == OPTIONS, choices, options
        self.generation = None
        self.computer = FeatureComputer(bundle) if self.has_scores else None
        self.shares_images = bool(options.get("share_images", True)) and shares_tokens(bundle)
        self.batch_size = int(options.get("batch_size", BATCH_SIZE))
        self.window = SCORED_WINDOW
        if not bundle.model.generates_text:
            self.window = generation.WINDOW * self.batch_size
        elif not self.has_scores:
            self.generation = generation.Generation.of(bundle, **options)
            self.window = self.generation.window

    def check(self, sample: Sample) -> None:
        """Raise `UserError` if the sample cannot be answered."""
        if self.checks_prompts:
            self.bundle.encoder.prompt(sample)
        if self.has_scores:
            candidates_of(sample, self.choices)

    def reference(self, sample: Sample) -> Answer:
        """Return the reference of a sample in the form of the answers."""
        return self.bundle.encoder.reference(sample)

    def answers(self, samples: Mapping[int, Sample], answered: Container[int]) -> Iterator[Answers]:
        """Yield the answers to the samples of a window batch by batch; see `Answerer`."""
        numbers = list(samples)
        if self.has_scores:
            size = self.options.get("batch_size", 4)
            if self.shares_images:
                yield from score_sharing(self.bundle, samples, self.choices, size, answered)
                return
            for number, sample in samples.items():
                if number not in answered:
                    yield {number: score_sample(self.bundle, sample, self.choices, size, self.computer)}
            return
        prompts = [self.bundle.encoder.prompt(sample) for sample in samples.values()]
        if self.generation is not None:
            for batch in self.generation.batches(prompts, numbers, answered):
                yield {numbers[position]: answer for position, answer in batch.items()}
            return
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            if not all(number in answered for number in numbers[part]):
                yield dict(zip(numbers[part], measure_batch(self.bundle, prompts[part]), strict=True))

    def fingerprint(self) -> dict[str, str]:
        """Return digests of the weights with their precision, of the encoding, and of the options of generation."""
        return {
            "model": _digest_of_weights(self.bundle),
            "settings of model_args": digest_of(self.settings),
            **options_fingerprint(self.has_scores, self.choices, self.options),
        }


def options_fingerprint(has_scores: bool, choices: Sequence[str], options: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of the options in `gen_kwargs` that answers depend on, by its name in messages."""
    important = {key: value for key, value in options.items() if key not in UNIMPORTANT}
    scoring = [OPTIONS, list(choices)] if has_scores else [GENERATION]
    return {"options in data_args.gen_kwargs": digest_of([scoring, sorted(important.items())])}


def digest_of(value: Any) -> str:
    """Return a digest of a value of plain types; the order of the keys of a mapping does not matter."""
    items = sorted(value.items()) if isinstance(value, Mapping) else value
    return hashlib.blake2b(repr(items).encode("utf-8", "replace"), digest_size=16).hexdigest()


def _digest_of_weights(bundle: Bundle) -> str:
    """Return a digest of names, shapes, types and `DIGESTED` values of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    model = bundle.model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type != "meta" and tensor.numel():
            values = tensor.detach().reshape(-1)
            values = values[:: max(1, len(values) // DIGESTED)].contiguous()
            digest.update(values.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
