"""Learning to say what a frozen teacher would say, word by word."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from mllm.errors import ConfigError, DataError
from mllm.objectives.base import Objective
from mllm.objectives.text import TILE_BYTES, _tiles
from mllm.registry import OBJECTIVES
from mllm.structures import IGNORE, Bundle, Context, Outputs

MOST_STRANGE = 0.01
"""Words of the smaller vocabulary, at its end, that the other need not share: tokens of images and sounds."""


@OBJECTIVES.register_module()
class LogitMatch(Objective):
    """The Kullback-Leibler divergence from the teacher's next-token distribution to the student's, at `temperature` T.

    Multiplied by T squared, so that gradients keep their size (Hinton et al., arXiv:1503.02531, section 2). An item is
    a supervised token. Both models must have the same words at the same ids; what only one has at the end of its
    vocabulary is left out. Computed in tiles of `tile_bytes`, so that no [B, L, vocabulary] tensor exists.
    """

    teacher = "logits"

    def __init__(
        self, weight: float | dict[str, float] = 1.0, temperature: float = 2.0, tile_bytes: int = TILE_BYTES
    ) -> None:
        super().__init__(weight)
        if temperature <= 0:
            raise ConfigError(f"LogitMatch.temperature must be above 0, not {temperature}")
        self.temperature, self.tile_bytes = temperature, tile_bytes
        self.shared = 0

    def connect(self, student: Bundle, teacher: Bundle | None) -> None:
        """Counts the words that both models share; raises `ConfigError` where their vocabularies are not the same."""
        assert teacher is not None, "the rules refuse LogitMatch without a teacher"
        self.shared = shared_words(student.encoder.tokenizer, teacher.encoder.tokenizer)

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Supervised tokens of each sample, [B]; the first token has nothing before it."""
        return (targets["labels"][:, 1:] != IGNORE).sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """The divergence summed over each sample's supervised tokens, [B], fp32."""
        if context.teacher is None:
            raise ConfigError("the objective LogitMatch needs a teacher: set distill_args = dict(teacher=...)")
        labels, theirs = context.targets["labels"][:, 1:], context.targets["teacher_labels"][:, 1:]
        (sample, position), (row, place) = ((kept != IGNORE).nonzero(as_tuple=True) for kept in (labels, theirs))
        if not torch.equal(labels[sample, position], theirs[row, place]) or not torch.equal(sample, row):
            raise DataError(
                "the teacher reads another answer than the student: one of them was cut at max_length, or their chat "
                "templates end a turn otherwise; raise max_length, or teach with a model of the same family"
            )
        ours_TD = context.student.hidden_BLD[sample, position]
        theirs_TD = context.teacher.hidden_BLD[row, place].detach()
        assert context.student.vocabulary is not None
        with torch.no_grad():
            width = self._logits(ours_TD[:1], context.student).shape[-1]
        losses = [
            checkpoint(self._tile, ours_TD[tile], theirs_TD[tile], context, use_reentrant=False)
            for tile in _tiles(len(sample), 2 * width, self.tile_bytes)
        ]
        loss_T = torch.cat(losses) if losses else ours_TD.sum(dim=1).float()
        return loss_T.new_zeros(labels.shape[0]).index_add(0, sample, loss_T)

    def _tile(self, ours_TD: Tensor, theirs_TD: Tensor, context: Context) -> Tensor:
        """The divergence [T] at some positions."""
        assert context.teacher is not None
        with torch.no_grad():
            true = log_softmax(self._logits(theirs_TD, context.teacher) / self.temperature, dim=-1)
        found = log_softmax(self._logits(ours_TD, context.student) / self.temperature, dim=-1)
        return self.temperature**2 * (true.exp() * (true - found)).sum(dim=-1)

    def _logits(self, hidden_TD: Tensor, outputs: Outputs) -> Tensor:
        """The logits [T, V] of the shared words, fp32."""
        vocabulary = outputs.vocabulary
        assert isinstance(vocabulary, nn.Module)
        logits = vocabulary(hidden_TD).float()[:, : self.shared]
        return logits if outputs.softcap is None else outputs.softcap * torch.tanh(logits / outputs.softcap)


def shared_words(student: Any, teacher: Any) -> int:
    """How many words, from id 0 on, two tokenizers have in common; raises `ConfigError` where they are not the same.

    MedGemma and Gemma 3n share the first 262,144 and differ in the tokens of images and sounds behind them.
    """
    ours, theirs = (
        [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
        for tokenizer in (student, teacher)
    )
    least = min(len(ours), len(theirs))
    shared = next((i for i in range(least) if ours[i] != theirs[i]), least)
    if shared < (1 - MOST_STRANGE) * least:
        raise ConfigError(
            f"LogitMatch needs a student and a teacher with the same words, and their vocabularies differ from id "
            f"{shared:,} on ('{ours[shared]}' and '{theirs[shared]}'): choose a teacher of the same family"
        )
    return shared
