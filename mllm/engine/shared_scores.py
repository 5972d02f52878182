"""Scoring of options that share the tokens of their question and its images."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from mllm.engine.option_scores import batch_likelihoods, candidates_of, encoded_options, most_probable
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.processor_outputs import TOKENS, text_of
from mllm.models.generation.generate import evaluating
from mllm.protocols import Bundle
from mllm.shared_rows import leaders_of, rows_of
from mllm.structures import Answer, Encoded, Sample

ROW = 8
"""Maximum number of options of a row, in batches: their hidden states are padded to the longest one."""


def score_sharing(
    bundle: Bundle,
    samples: Mapping[int, Sample],
    choices: Sequence[str] = (),
    batch_size: int = 4,
    answered: Container[int] = (),
) -> Iterator[dict[int, Answer]]:
    """Yield the answers of `score_sample` to some samples, row by row: number of the sample -> answer.

    The options of a question continue the tokens of the question, and the questions about equal images those of the
    images, which are computed once in a row.

    Args:
        bundle: Model and encoder, whose samples can share tokens.
        samples: Number -> conversation; a last assistant turn is not used.
        choices: Possible answers to questions that list no options.
        batch_size: A row has at most the tokens of this number of options, and of one more, that share nothing.
        answered: Numbers of samples that need no answer. A row of these is left out.

    Raises:
        ConfigError: A likelihood is NaN or infinite.
        DataError: A question has no options, or an option does not fit into `max_length`.
    """
    candidates = {number: candidates_of(sample, choices) for number, sample in samples.items()}
    options, owners = list[Encoded](), list[int]()
    for number, sample in samples.items():
        encoded = encoded_options(bundle, sample, candidates[number])
        options += [_sharing(option, encoded[0], f"row {number}") for option in encoded]
        owners += [number] * len(encoded)
    likelihoods: dict[int, dict[int, float]] = {number: {} for number in samples}
    room = (batch_size + 1) * max(map(len, options), default=0)
    for row in rows_of(options, room, ROW * batch_size):
        if all(owners[index] in answered for index in row):
            continue
        for index, likelihood in zip(row, _likelihoods(bundle, [options[index] for index in row]), strict=True):
            likelihoods[owners[index]][index] = likelihood
        complete = [number for number, parts in likelihoods.items() if len(parts) == len(candidates[number])]
        yield {
            number: most_probable(candidates[number], [value for _, value in sorted(likelihoods.pop(number).items())])
            for number in complete
        }


def _sharing(option: Encoded, first: Encoded, row: str) -> Encoded:
    """Return an option with the image tensors of the first one, of which one copy is in memory."""
    images = {name: tensor for name, tensor in first.student.items() if name not in TOKENS}
    return replace(option, student=text_of(option.student) | images, image_key=option.image_key or row)


@torch.no_grad()
def _likelihoods(bundle: Bundle, row: Sequence[Encoded]) -> list[float]:
    """Return the log-likelihood of the answer of each sample of a row."""
    encoder = bundle.encoder
    assert isinstance(encoder, ChatEncoder)
    with evaluating(bundle.model), bundle.model.computing():
        return batch_likelihoods(bundle, encoder.pad_shared(row, *leaders_of(row)))
