"""Tests of logit distillation against the divergence of PyTorch over full logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mllm.errors import ConfigError, DataError
from mllm.objectives.logits import LogitMatch, shared_tokens
from mllm.structures import IGNORE, Context, Outputs

WORDS = 53


class Words:
    """Tokenizer with a vocabulary only."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in reversed(list(enumerate(self.words)))}


def _objective(**options) -> LogitMatch:
    objective = LogitMatch(**options)
    objective.shared = WORDS
    return objective


def _case():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        nn.Linear(width, rows, bias=False).requires_grad_(False) for width, rows in ((16, WORDS), (24, WORDS + 3))
    )
    for head in (ours, theirs):
        nn.init.normal_(head.weight, generator=generator)
    labels = torch.randint(0, WORDS, (2, 9), generator=generator)
    labels[:, :5] = IGNORE
    labels[1, 7:] = IGNORE
    shifted = torch.full((2, 12), IGNORE)  # the teacher's prompt is three tokens longer
    shifted[:, 3:] = labels
    student = torch.randn(2, 9, 16, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 12, 24, generator=generator)
    targets = {"labels": labels, "teacher_labels": shifted}
    return Context(targets, Outputs(student, ours, 5.0), Outputs(teacher, theirs)), student


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("tile_bytes", [4 * WORDS * 2 * 2, 2**24])
def test_value_and_gradient_equal_the_divergence_over_full_logits(temperature: float, tile_bytes: int):
    context, student = _case()
    total = _objective(temperature=temperature, tile_bytes=tile_bytes).total(context)
    logits = context.student.vocabulary(student)[:, :-1]
    logits = 5.0 * torch.tanh(logits / 5.0)
    teacher_logits = context.teacher.vocabulary(context.teacher.hidden_BLD)[:, 3:-1, :WORDS]
    each = F.kl_div(
        F.log_softmax(logits / temperature, -1),
        F.log_softmax(teacher_logits / temperature, -1),
        log_target=True,
        reduction="none",
    )
    supervised = context.targets["labels"][:, 1:] != IGNORE
    expected = temperature**2 * (each.sum(-1) * supervised).sum(1)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(total.sum(), student, retain_graph=True)
    (wanted_gradient,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)
    assert LogitMatch().count(context.targets).tolist() == supervised.sum(1).tolist()


def test_equal_models_have_no_loss():
    context, student = _case()
    twin = Outputs(F.pad(student.detach(), (0, 0, 3, 0)), context.student.vocabulary, 5.0)
    total = _objective().total(Context(context.targets, context.student, twin))
    torch.testing.assert_close(total, torch.zeros(2), rtol=0, atol=1e-5)


def test_without_supervision_the_loss_is_zero_with_a_gradient():
    context, student = _case()
    silent = {name: torch.full_like(labels, IGNORE) for name, labels in context.targets.items()}
    total = _objective().total(Context(silent, context.student, context.teacher))
    total.sum().backward()
    assert total.tolist() == [0, 0] and not student.grad.any()


def test_different_supervised_tokens_of_the_teacher_are_refused():
    context, _ = _case()
    cut = context.targets | {"teacher_labels": context.targets["teacher_labels"].clone()}
    cut["teacher_labels"][0, -1] = IGNORE
    with pytest.raises(DataError, match="teacher and student have different supervised tokens"):
        _objective().count(cut)


def test_only_the_end_of_a_vocabulary_may_differ():
    words = [f"word{i}" for i in range(1000)]
    assert shared_tokens(Words([*words, "<image>"]), Words([*words, "<sound>", "<image>"])) == 1000
    with pytest.raises(ConfigError, match=r"their vocabularies differ from id 500 on \('word500' and 'other'\)"):
        shared_tokens(Words(words), Words([*words[:500], "other", *words[501:]]))


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ConfigError, match="temperature must be above 0, not 0"):
        LogitMatch(temperature=0)
