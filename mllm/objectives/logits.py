"""Distillation of next-token distributions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from mllm.errors import ConfigError, DataError
from mllm.objectives.base import Objective
from mllm.objectives.text import TILE_BYTES, tiles
from mllm.protocols import Bundle
from mllm.registry import OBJECTIVES
from mllm.structures import IGNORE, Context, Outputs
from mllm.supervision import places_of

MAX_UNSHARED = 0.01
"""Fraction of the smaller vocabulary, at its end, that may differ: tokens of images and sounds."""


@OBJECTIVES.register_module()
class LogitMatch(Objective):
    """Kullback-Leibler divergence from the next-token distribution of the teacher to that of the student.

    It is multiplied by the squared temperature, so that the size of gradients does not depend on it (Hinton et al.,
    arXiv:1503.02531, section 2). An item is a supervised token. Both models must have the same tokens at the same ids;
    tokens at the end of a vocabulary that the other model does not have are ignored.

    Args:
        weight: Factor of this term.
        temperature: Divisor of the logits of both models.
        tile_bytes: Size in bytes of the fp32 logits that exist at one time.
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
        """Count the tokens that both models share. Raise `ConfigError` if their vocabularies differ."""
        assert teacher is not None, "the rules refuse LogitMatch without a teacher"
        self.shared = shared_tokens(student.encoder.tokenizer, teacher.encoder.tokenizer)

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """Return the number of supervised tokens of each sample, [B]. The first token cannot be predicted.

        They are compared here, because an update of the trainer counts them on the host, before the forward pass on a
        device. A loss outside of an update counts on the device, which waits for the comparison.

        Raises:
            DataError: Teacher and student have different supervised tokens.
        """
        labels, teacher_labels = targets["labels"], targets["teacher_labels"]
        (sample, column), (teacher_sample, teacher_column) = places_of(targets), places_of(targets, "teacher_labels")
        tokens, teacher_tokens = labels[sample, column + 1], teacher_labels[teacher_sample, teacher_column + 1]
        if not torch.equal(tokens, teacher_tokens) or not torch.equal(sample, teacher_sample):
            raise DataError(
                "teacher and student have different supervised tokens: an answer was cut at max_length, or their chat "
                "templates end a turn differently; raise max_length, or choose a teacher of the same family"
            )
        return (labels[:, 1:] != IGNORE).sum(dim=1)

    def total(self, context: Context) -> Tensor:
        """Return the divergence summed over the supervised tokens of each sample, [B], fp32."""
        if context.teacher is None:
            raise ConfigError("the objective LogitMatch needs a teacher: set distill_args = dict(teacher=...)")
        sample, position = places_of(context.targets)
        student_TD = context.student.hidden_BLD[sample, position]
        teacher_TD = context.teacher.hidden_BLD[places_of(context.targets, "teacher_labels")].detach()
        assert context.student.vocabulary is not None
        with torch.no_grad():
            width = self._logits(student_TD[:1], context.student).shape[-1]
        losses = [
            checkpoint(self._tile, student_TD[tile], teacher_TD[tile], context, use_reentrant=False)
            for tile in tiles(len(sample), 2 * width, self.tile_bytes)
        ]
        loss_T = torch.cat(losses) if losses else student_TD.sum(dim=1).float()
        samples = len(context.targets["labels"])
        return loss_T.new_zeros(samples).index_add(0, sample, loss_T)

    def _tile(self, student_TD: Tensor, teacher_TD: Tensor, context: Context) -> Tensor:
        """Return the divergence of each token, [T]."""
        assert context.teacher is not None
        with torch.no_grad():
            teacher = log_softmax(self._logits(teacher_TD, context.teacher) / self.temperature, dim=-1)
        student = log_softmax(self._logits(student_TD, context.student) / self.temperature, dim=-1)
        return self.temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=-1)

    def _logits(self, hidden_TD: Tensor, outputs: Outputs) -> Tensor:
        """Return the logits of the shared tokens, [T, V], fp32."""
        vocabulary = outputs.vocabulary
        assert isinstance(vocabulary, nn.Module)
        logits = vocabulary(hidden_TD).float()[:, : self.shared]
        return logits if outputs.softcap is None else outputs.softcap * torch.tanh(logits / outputs.softcap)


def shared_tokens(student: Any, teacher: Any) -> int:
    """Return the number of equal tokens of two tokenizers, from id 0. Raise `ConfigError` if it is too small.

    MedGemma and Gemma 3n share the first 262,144 tokens and differ in the tokens of images and sounds after them.
    """
    student_tokens, teacher_tokens = (
        [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
        for tokenizer in (student, teacher)
    )
    smaller = min(len(student_tokens), len(teacher_tokens))
    shared = next((i for i in range(smaller) if student_tokens[i] != teacher_tokens[i]), smaller)
    if shared < (1 - MAX_UNSHARED) * smaller:
        raise ConfigError(
            f"LogitMatch needs a student and a teacher with the same tokens, and their vocabularies differ from id "
            f"{shared:,} on ('{student_tokens[shared]}' and '{teacher_tokens[shared]}'): choose a teacher of the same "
            "family"
        )
    return shared
