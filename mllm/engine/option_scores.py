"""Scoring of the options of a question by their likelihood as answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from mllm.engine.feature_computer import FeatureComputer
from mllm.errors import ConfigError, DataError
from mllm.models.encoding.image_features import with_features
from mllm.models.generation.generate import evaluating
from mllm.objectives.text import NextToken
from mllm.parsing import options_in
from mllm.protocols import Bundle
from mllm.structures import Answer, Batch, Context, Encoded, Sample, Turn


def candidates_of(sample: Sample, choices: Sequence[str] = ()) -> dict[str, str]:
    """Return the possible answers to a sample, answer -> text of the option.

    They are the letters of the options that the question lists (`A: normal B: edema`), or else `choices`.

    Raises:
        DataError: The question lists no options, and there are fewer than two choices.
    """
    question = next((turn.text for turn in reversed(sample.turns) if turn.role == "user"), "")
    candidates = options_in(question) or {choice: choice for choice in choices}
    if len(candidates) < 2:
        raise DataError.without_values(
            "the question lists no options such as 'A: normal B: edema': set data_args.gen_kwargs.choices to the "
            "possible answers, such as ['yes', 'no']"
        )
    return candidates


@torch.no_grad()
def score_sample(
    bundle: Bundle,
    sample: Sample,
    choices: Sequence[str] = (),
    batch_size: int = 4,
    computer: FeatureComputer | None = None,
) -> Answer:
    """Return the most probable option of a sample, with the probabilities of all.

    The likelihood of an option is that of all its tokens and of the end of the turn, so that options of different
    lengths are comparable. Probabilities are the softmax of the log-likelihoods over the options of the sample: the
    probability of an option, given that the answer is one of them.

    Args:
        bundle: Model and encoder.
        sample: A conversation; a last assistant turn is not used.
        choices: Possible answers to questions that list no options.
        batch_size: Number of options in a forward pass.
        computer: Vision tower that computes the images once. None: it computes them for every option.

    Raises:
        ConfigError: A likelihood is NaN or infinite.
        DataError: The question has no options, or an option does not fit into `max_length`.
    """
    candidates = candidates_of(sample, choices)
    with evaluating(bundle.model), bundle.model.computing():
        likelihoods = _log_likelihoods(bundle, sample, list(candidates), batch_size, computer)
    return most_probable(candidates, likelihoods)


def most_probable(candidates: Mapping[str, str], likelihoods: Sequence[float]) -> Answer:
    """Return the most probable option, with the probabilities of all, from their log-likelihoods.

    Raises:
        ConfigError: A likelihood is NaN or infinite.
    """
    if not all(map(math.isfinite, likelihoods)):  # the most probable option would be the first one
        raise ConfigError(
            "the likelihoods of the options are not finite: evaluate an earlier checkpoint, or on a device "
            "with another precision"
        )
    probabilities = torch.tensor(likelihoods, dtype=torch.float64).softmax(0).tolist()
    best = max(range(len(candidates)), key=probabilities.__getitem__)
    scores = dict.fromkeys(candidates.values(), 0.0)
    for text, probability in zip(candidates.values(), probabilities, strict=True):
        scores[text] += probability  # two letters can have the same text
    return Answer(list(candidates)[best], scores=scores)


def encoded_options(bundle: Bundle, sample: Sample, candidates: Iterable[str]) -> list[Encoded]:
    """Return a sample encoded with each candidate as its answer.

    Raises:
        DataError: A candidate does not fit into `max_length`.
    """
    turns = sample.turns[:-1] if sample.turns and sample.turns[-1].role == "assistant" else sample.turns
    encoded = []
    for text in candidates:
        encoded.append(bundle.encoder.encode(replace(sample, turns=[*turns, Turn("assistant", text)])))
        if encoded[-1].truncated:
            raise DataError.without_values("an option does not fit into max_length: raise model_args.max_length")
    return encoded


def _log_likelihoods(
    bundle: Bundle, sample: Sample, candidates: Sequence[str], batch_size: int, computer: FeatureComputer | None
) -> list[float]:
    """Return the log-likelihood of each candidate as the answer, up to a constant of the sample."""
    encoded = encoded_options(bundle, sample, candidates)
    features = computer and computer.features(encoded[0])
    if features:
        host = {name: tensor.cpu() for name, tensor in features.items()}
        encoded = [replace(one, student=with_features(one.student, host), has_features=True) for one in encoded]
    likelihoods = list[float]()
    for start in range(0, len(encoded), batch_size):
        likelihoods += batch_likelihoods(bundle, bundle.encoder.pad(encoded[start : start + batch_size]))
    return likelihoods


def batch_likelihoods(bundle: Bundle, batch: Batch) -> list[float]:
    """Return the log-likelihood of the answer of each sample of a batch."""
    batch = batch.to(bundle.model.pretrained.device)
    loss_B = NextToken().total(Context(batch.targets, bundle.model(**batch.student)))
    likelihoods: list[float] = (-loss_B).double().tolist()
    return likelihoods
