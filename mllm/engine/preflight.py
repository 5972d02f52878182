"""Checks before the first update: gradients, loss and memory."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from mllm.engine.learner import Learner
from mllm.errors import ConfigError
from mllm.models.encoding.packing import ROW, followers
from mllm.models.encoding.views import ViewEncoder
from mllm.models.language_model import LanguageModel
from mllm.structures import IGNORE, Batch, Bundle, Context, LogicalBatch

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 3e-2}
"""Relative tolerance of the loss, by the dtype of the vocabulary."""

MAX_BATCHES = 16
"""Maximum number of logical batches, after the first, that are read to find gradients."""


def preflight(learner: Learner, batch: LogicalBatch, accelerator: Any, further: Iterable[LogicalBatch] = ()) -> None:
    """Check the first logical batch without an update. Gradients and random states do not change.

    Args:
        learner: The learner.
        batch: The first logical batch.
        accelerator: Accelerator of the trainer.
        further: More batches, at most 16. They are read while a trainable tensor has no gradient, such as a vision
            tower after a batch of texts.

    Raises:
        ConfigError: A trainable tensor receives no gradient, an objective has no trainable tensor of the student, or
            the loss differs from that of the model's own logits.
    """
    device = accelerator.device
    devices = [device] if device.type == "cuda" else []
    was_training = learner.training
    with torch.random.fork_rng(devices=devices):
        learner.train()
        pieces = (piece.to(device) for item in chain([batch], islice(further, MAX_BATCHES)) for piece in item.pieces)
        with accelerator.autocast():
            _check_gradients(learner, pieces)
        learner.eval()
        if isinstance(learner.student, LanguageModel):
            with accelerator.autocast():
                # Packing is checked on a sample after another one in its row, if there is one.
                piece = next((piece for piece in batch.pieces if followers(piece.student).any()), batch.pieces[-1])
                _check_loss(learner, learner.student, piece.to(device))
    learner.train(was_training)
    learner.zero_grad(set_to_none=True)
    if device.type == "cuda":
        peak, card = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        logger.info("memory: %.2f GB of %.2f GB at the first micro-batch's peak", peak / 1e9, card / 1e9)


def _check_gradients(learner: Learner, pieces: Iterable[Batch]) -> None:
    """Raise `ConfigError` unless each trainable tensor has a gradient and each objective has one of the student."""
    trainable = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ConfigError("nothing is trainable: set model_args.lora_r, or name an adapter to continue")
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
            gradients = torch.autograd.grad(total, list(candidates.values()), retain_graph=True, allow_unused=True)
            reached = [tensor for tensor, gradient in zip(candidates, gradients, strict=True) if gradient is not None]
            if any(tensor.startswith("student.") for tensor in reached):  # projectors of objectives do not count
                unreached.discard(name)
            missing = {tensor: parameter for tensor, parameter in missing.items() if tensor not in reached}
    if missing:
        examples = ", ".join(list(missing)[:5])
        raise ConfigError(
            f"{len(missing)} trainable tensors receive no gradient, so they would not be trained: {examples}"
            + (" ..." if len(missing) > 5 else "")
            + "; narrow model_args.lora_target, check that the data reaches them (images for the vision tower), or add "
            "an objective that trains them (BoxLoss, MaskLoss)"
        )
    if unreached:
        raise ConfigError(
            f"the objectives {sorted(unreached)} have no gradient for any trainable tensor of the model; remove them, "
            "or train the modules before them"
        )
    if idle:
        logger.warning("the objectives %s have no supervised item in the first batches of the data", sorted(idle))


@torch.no_grad()
def _check_loss(learner: Learner, student: LanguageModel, piece: Batch) -> None:
    """Compare the loss of one sample with the one from the model's own logits. Raise `ConfigError` if they differ.

    This finds models that scale, shift or cap their logits in an unsupported way. A packed sample is compared with the
    same sample without the others of its row, which finds a wrong attention mask.
    """
    objective = dict(learner.named_objectives()).get("next_token")
    if objective is None or (piece.targets["labels"][:, 1:] != IGNORE).sum() == 0:
        return
    model = student.pretrained
    labels = piece.targets["labels"]
    counts = (labels[:, 1:] != IGNORE).sum(dim=1)
    packed = counts * followers(piece.student)
    sample = int((packed if packed.any() else counts).argmax())
    positions = (labels[sample, 1:] != IGNORE).nonzero().squeeze(1)[:64]
    tokens = labels[sample, positions + 1]
    loss = objective.total(Context({"labels": _only(labels, sample, positions + 1)}, student(**piece.student)))[sample]
    alone = piece.student
    if ROW in alone:
        alone = {name: tensor[sample : sample + 1] for name, tensor in alone.items()}
        sample = 0
    with student.inserting_objects(alone) as kwargs:
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            logits = model(**kwargs, logits_to_keep=positions).logits[sample]
        else:
            logits = model(**kwargs).logits[sample, positions]
    expected = nn.functional.cross_entropy(logits.float(), tokens, reduction="sum")
    tolerance = TOLERANCE.get(model.get_output_embeddings().weight.dtype, 3e-2)
    if torch.is_autocast_enabled(labels.device.type):
        tolerance = TOLERANCE[torch.bfloat16]
    if not torch.isclose(loss.float(), expected, rtol=tolerance, atol=1e-3):
        reason = "changes its logits in a way that this version does not support; please report it"
        if ROW in piece.student:
            reason = "attends to other samples of a packed row; set data_args.packing=False"
        raise ConfigError(
            f"the loss of the first batch is {float(loss):.4f}, but {float(expected):.4f} from the model's own logits: "
            f"{type(model).__name__} {reason}"
        )


def _only(labels_BL: Tensor, sample: int, positions: Tensor) -> Tensor:
    """Return labels in which only some positions of one sample are supervised."""
    only = torch.full_like(labels_BL, IGNORE)
    only[sample, positions] = labels_BL[sample, positions]
    return only


def describe_batch(batch: LogicalBatch, bundle: Bundle, limit: int = 4) -> str:
    """Return the contents of `first_batch.md`: shapes and up to `limit` samples, decoded from their token ids."""
    encoder = bundle.encoder
    if isinstance(encoder, ViewEncoder):
        return _describe_views(batch, encoder, limit)
    tokenizer, image_ids = encoder.tokenizer, encoder.image_token_ids
    lines = [
        "# The first batch",
        "",
        f"Samples: {batch.samples}, in pieces: {len(batch.pieces)}, tokens: {batch.tokens} "
        f"({batch.padded_tokens} with padding). The first {min(limit, batch.samples)}, decoded from their token ids; "
        "**bold** is supervised.",
    ]
    shown = 0
    for piece in batch.pieces:
        shapes = {name: tuple(tensor.shape) for name, tensor in piece.student.items()}
        lines += ["", f"## A piece of {piece.targets['labels'].shape[0]}", "", f"`{shapes}`"]
        for row in range(min(limit - shown, piece.targets["labels"].shape[0])):
            ids, labels = piece.student["input_ids"][row], piece.targets["labels"][row]
            mask = piece.student["attention_mask"][row].bool()
            if "decoder_input_ids" in piece.student:  # the text of the encoder comes first; it is not supervised
                source = ids[mask].tolist()
                lines += ["", _marked(source, [False] * len(source), tokenizer, image_ids)]
                ids, mask = piece.student["decoder_input_ids"][row], (labels != IGNORE)
                mask[0] = True
            lines += ["", _marked(ids[mask].tolist(), (labels[mask] != IGNORE).tolist(), tokenizer, image_ids)]
            shown += 1
        if shown >= limit:
            break
    return "\n".join(lines) + "\n"


def _describe_views(batch: LogicalBatch, encoder: ViewEncoder, limit: int) -> str:
    """Return the contents of `first_batch.md` for a model that reads views and predicts measures."""
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.pieces[0].student.items()}
    lines = [
        "# The first batch",
        "",
        f"Samples: {batch.samples}, in pieces: {len(batch.pieces)}; views {', '.join(encoder.views)}: `{shapes}`",
        "",
    ]
    targets = [piece.targets for piece in batch.pieces]
    rows = [row for target in targets for row in zip(target["measures"], target["measures_known"], strict=True)]
    for values, known in rows[:limit]:
        measures = zip(encoder.measures, values.tolist(), known.tolist(), strict=True)
        lines.append(
            f"> {encoder.answer({name: value for name, value, is_known in measures if is_known}).text or 'unknown'}"
        )
    return "\n".join(lines) + "\n"


def _marked(ids: list[int], supervised: list[bool], tokenizer: Any, image_ids: Collection[int]) -> str:
    """Return token ids as text, with image tokens counted and supervised tokens in bold."""
    spans: list[tuple[str, list[int]]] = []
    for token, is_supervised in zip(ids, supervised, strict=True):
        kind = "image" if token in image_ids else "answer" if is_supervised else "prompt"
        if not spans or spans[-1][0] != kind:
            spans.append((kind, []))
        spans[-1][1].append(token)
    parts = []
    for kind, tokens in spans:
        text = tokenizer.decode(tokens).replace("<", "\\<").replace("\n", "⏎")
        parts.append(
            f"[{len(tokens)} image tokens]" if kind == "image" else f"**{text}**" if kind == "answer" else text
        )
    return "> " + "".join(parts)
