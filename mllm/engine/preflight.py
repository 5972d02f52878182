"""Checks before the first update: gradients, loss and memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from mllm.engine.learner import Learner
from mllm.engine.padding_check import PaddedPair, check_padding
from mllm.errors import ConfigError
from mllm.models.backbone.int8 import without_outliers
from mllm.models.backbone.model_errors import explained_model_errors
from mllm.models.encoding.packing import LAYOUT, followers
from mllm.structures import IGNORE, Batch, Context, LogicalBatch, Outputs

logger = logging.getLogger(__name__)

TOLERANCE, HALF_TOLERANCE = 1e-3, 3e-2
"""Relative tolerance of the loss in fp32 and in half precision."""
ROUNDING = 3e-5
"""Relative tolerance of hidden states in fp32 that must be equal; in half precision it is `HALF_TOLERANCE`. New weights
attend to later tokens so little that a larger one would not show it."""

MAX_BATCHES = 16
"""Maximum number of logical batches, after the first, that are read to find gradients."""


def preflight(
    learner: Learner,
    batch: LogicalBatch,
    accelerator: Any,
    further: Iterable[LogicalBatch] = (),
    pair: PaddedPair | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
) -> None:
    """Check the first logical batch without an update. Gradients and random states do not change.

    Args:
        learner: The learner.
        batch: The first logical batch.
        accelerator: Accelerator of the trainer.
        further: More batches, at most 16. They are read while a trainable tensor has no gradient, such as a vision
            tower after a batch of texts.
        pair: Two samples that training could put into one batch. None: its batches have one sample, or no padding.
        autocast: Function that returns the context of the forward passes; None: that of the accelerator.

    Raises:
        ConfigError: A trainable tensor receives no gradient, an objective reaches no trainable tensor of the student,
            the model attends to later tokens of an answer, the states of a sample depend on the padding of its batch,
            the loss differs from that of the model's own logits, or the code of the model raises an error.
    """
    device, autocast = accelerator.device, autocast or accelerator.autocast
    devices = [device] if device.type == "cuda" else []
    was_training = learner.training
    explained = explained_model_errors(learner.student.pretrained, "on the first batch", "cannot be trained")
    with torch.random.fork_rng(devices=devices), explained:
        learner.train()
        pieces = (piece.to(device) for item in chain([batch], islice(further, MAX_BATCHES)) for piece in item.pieces)
        with autocast():
            _check_gradients(learner, pieces)
        learner.eval()
        if learner.student.generates_text:
            with autocast(), without_outliers(learner):
                _check_answers(learner, batch, pair, device)
    learner.train(was_training)
    learner.zero_grad(set_to_none=True)
    if device.type == "cuda":
        peak, card = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        logger.info("memory: %.2f GB of %.2f GB at the first micro-batch's peak", peak / 1e9, card / 1e9)


def _check_gradients(learner: Learner, pieces: Iterable[Batch]) -> None:
    """Raise `ConfigError` unless each trainable tensor has a gradient and each objective has one of the student."""
    trainable = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ConfigError("the model has no trainable tensor: set model_args.lora_r, adapter_path or trainable")
    missing, unreached, idle = dict(trainable), set(learner.objectives), set(learner.objectives)
    for piece in pieces:
        idle -= {name for name, count in learner.counts(piece.targets).items() if count > 0}
        if not missing and not unreached:
            if not idle:
                return
            continue
        outputs = learner.student(**piece.student)
        context = Context(piece.targets, outputs, learner.run_teacher(piece.teacher), learner.progress)
        for name, objective in learner.named_objectives():
            total = objective.total(context).sum()
            candidates = trainable if name in unreached else missing
            if not total.requires_grad or not candidates:
                continue
            reached = _reached(total, candidates)
            if any(tensor.startswith("student.") for tensor in reached):  # projectors of objectives do not count
                unreached.discard(name)
            missing = {tensor: parameter for tensor, parameter in missing.items() if tensor not in reached}
    if missing:
        examples = ", ".join(list(missing)[:5])
        raise ConfigError(
            f"{len(missing)} trainable tensors receive no gradient, so they would not be trained: {examples}"
            + (" ..." if len(missing) > 5 else "")
            + "; narrow model_args.lora_target or trainable, check that the data reaches them (images for the vision "
            "tower), or add an objective that trains them (BoxLoss, MaskLoss)"
        )
    if unreached:
        raise ConfigError(
            f"the objectives {sorted(unreached)} have no gradient for any trainable tensor of the model; remove them, "
            "or train the modules before them"
        )
    if idle:
        logger.warning("the objectives %s have no supervised item in the first batches of the data", sorted(idle))


def _reached(total: Tensor, candidates: Mapping[str, nn.Parameter]) -> set[str]:
    """Return the names of the parameters that have a gradient of `total`, [].

    Each gradient is dropped before the next one is computed: a process whose engine divides gradients has no memory for
    all of them, and at this time it has all weights.
    """
    reached = set()

    def drop(name: str, parameter: Tensor) -> None:
        reached.add(name)
        parameter.grad = None

    handles = [
        parameter.register_post_accumulate_grad_hook(partial(drop, name)) for name, parameter in candidates.items()
    ]
    try:
        total.backward(retain_graph=True, inputs=list(candidates.values()))
    finally:
        for handle in handles:
            handle.remove()
    return reached


@torch.no_grad()
def _check_answers(learner: Learner, batch: LogicalBatch, pair: PaddedPair | None, device: torch.device) -> None:
    """Check the states and the loss of one piece, which are computed once: `pair`, or else a piece of the batch.

    Packing is checked on a sample after another one in its row, if there is one.
    """
    pieces = [piece for piece in batch.pieces if followers(piece.student).any()] or batch.pieces[-1:]
    piece = (pieces[0] if pair is None else pair.together).to(device)
    outputs = learner.student(**piece.student)
    _check_causality(learner, piece, outputs)
    if pair is not None:
        alone = PaddedPair(piece, pair.alone.to(device))
        check_padding(learner.student, alone, outputs.hidden_BLD, rounds=not _computes_in_fp32(learner, device))
    _check_loss(learner, piece, outputs)


def _computes_in_fp32(learner: Learner, device: torch.device) -> bool:
    """Return False if the model computes in half precision: by autocast, or in any of its parts by their weights.

    A vocabulary that trains is in fp32 also where the layers before it are not.
    """
    dtypes = {parameter.dtype for parameter in learner.student.pretrained.parameters() if parameter.is_floating_point()}
    return not torch.is_autocast_enabled(device.type) and all(dtype.itemsize >= 4 for dtype in dtypes)


def _check_causality(learner: Learner, piece: Batch, outputs: Outputs) -> None:
    """Change the last supervised token of a sample. Raise `ConfigError` if hidden states before it change.

    This finds models that attend in both directions, such as BERT, or within a prefix that includes the answer. They
    would see the answer in training, and could not generate it.
    """
    labels, student = piece.targets["labels"], learner.student
    name = "decoder_input_ids" if "decoder_input_ids" in piece.student else "input_ids"
    sample = int((labels != IGNORE).sum(dim=1).argmax())
    positions = (labels[sample] != IGNORE).nonzero().squeeze(1)
    if len(positions) < 2:
        return
    last = int(positions[-1])
    others = labels[sample, positions][labels[sample, positions] != labels[sample, last]]
    if not len(others):
        return
    changed = piece.student[name].clone()
    changed[sample, last] = others[0]
    before = outputs.hidden_BLD[sample, :last].float()
    after = student(**{**piece.student, name: changed}).hidden_BLD[sample, :last].float()
    tolerance = ROUNDING if _computes_in_fp32(learner, before.device) else HALF_TOLERANCE
    # Single dimensions of many models are a thousand times as large as the others, and so is their rounding.
    if ((after - before).abs() > tolerance * (before.std() + before.abs())).any():
        raise ConfigError(
            f"{type(student.pretrained).__name__} attends to later tokens, so it would see the answer in training: "
            "choose a causal language model, or a type that masks the answer"
        )


def _check_loss(learner: Learner, piece: Batch, outputs: Outputs) -> None:
    """Compare the loss of one sample with the one from the model's own logits. Raise `ConfigError` if they differ.

    This finds models that scale, shift or cap their logits in an unsupported way. A packed sample is compared with the
    same sample without the others of its row, which finds a wrong attention mask.
    """
    objective = dict(learner.named_objectives()).get("next_token")
    if objective is None or (piece.targets["labels"][:, 1:] != IGNORE).sum() == 0:
        return
    student = learner.student
    labels = piece.targets["labels"]
    counts = (labels[:, 1:] != IGNORE).sum(dim=1)
    packed = counts * followers(piece.student)
    sample = int((packed if packed.any() else counts).argmax())
    positions = (labels[sample, 1:] != IGNORE).nonzero().squeeze(1)[:64]
    tokens = labels[sample, positions + 1]
    loss = objective.total(Context({"labels": _only(labels, sample, positions + 1)}, outputs))[sample]
    logits = student.own_logits(piece.student, sample, positions)
    expected = nn.functional.cross_entropy(logits.float(), tokens, reduction="sum")
    tolerance = TOLERANCE if _computes_in_fp32(learner, labels.device) else HALF_TOLERANCE
    if not torch.isclose(loss.float(), expected, rtol=tolerance, atol=1e-3):
        reason = "changes its logits in a way that this version does not support; please report it"
        if LAYOUT in piece.student:
            reason = "attends to other samples of a packed row; set data_args.packing=False"
        if LAYOUT in piece.student and piece.student[LAYOUT].has_shared_tokens:
            reason = "attends to other samples about the same image; set data_args.share_images=False"
        raise ConfigError(
            f"the loss of the first batch is {float(loss):.4f}, but {float(expected):.4f} from the model's own logits: "
            f"{type(student.pretrained).__name__} {reason}"
        )


def _only(labels_BL: Tensor, sample: int, positions: Tensor) -> Tensor:
    """Return labels in which only some positions of one sample are supervised."""
    only = torch.full_like(labels_BL, IGNORE)
    only[sample, positions] = labels_BL[sample, positions]
    return only
