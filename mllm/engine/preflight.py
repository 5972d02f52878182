"""Before step 1: one micro-batch proves that everything trains, that the loss is the model's own, and that it fits."""

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
"""How far our loss may be from the model's own, relative, by the dtype of its vocabulary."""

MOST = 16
"""How many logical batches after the first may show that everything trains."""


def preflight(learner: Learner, batch: LogicalBatch, accelerator: Any, further: Iterable[LogicalBatch] = ()) -> None:
    """Runs the first logical batch without an update, and leaves no trace in gradients or random states.

    Where something trainable is not reached by it (a vision tower by texts alone), the `further` ones are looked at,
    as many as are needed, 16 at most. Raises `ConfigError` naming trainable tensors that receive no gradient,
    objectives that reach none, or a loss that is not the model's own.
    """
    device = accelerator.device
    devices = [device] if device.type == "cuda" else []
    was_training = learner.training
    with torch.random.fork_rng(devices=devices):
        learner.train()
        pieces = (piece.to(device) for seen in chain([batch], islice(further, MOST)) for piece in seen.pieces)
        with accelerator.autocast():
            _check_gradients(learner, pieces)
        learner.eval()
        if isinstance(learner.student, LanguageModel):
            with accelerator.autocast():
                # Packing is proven on a sample that stands behind another, if any does.
                piece = next((piece for piece in batch.pieces if followers(piece.student).any()), batch.pieces[-1])
                _check_loss(learner, learner.student, piece.to(device))
    learner.train(was_training)
    learner.zero_grad(set_to_none=True)
    if device.type == "cuda":
        peak, card = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        logger.info("memory: %.2f GB of %.2f GB at the first micro-batch's peak", peak / 1e9, card / 1e9)


def _check_gradients(learner: Learner, pieces: Iterable[Batch]) -> None:
    """Every trainable tensor receives a gradient from some piece, and every objective reaches a trainable tensor."""
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
        context = Context(piece.targets, outputs, learner.taught(piece.teacher), learner.progress)
        for name, objective in learner.named_objectives():
            total = objective.total(context).sum()
            asked = trainable if name in unreached else missing
            if not total.requires_grad or not asked:
                continue
            gradients = torch.autograd.grad(total, list(asked.values()), retain_graph=True, allow_unused=True)
            reached = [tensor for tensor, gradient in zip(asked, gradients, strict=True) if gradient is not None]
            if any(tensor.startswith("student.") for tensor in reached):  # a projector of its own is not enough
                unreached.discard(name)
            missing = {tensor: parameter for tensor, parameter in missing.items() if tensor not in reached}
    if missing:
        some = ", ".join(list(missing)[:5])
        raise ConfigError(
            f"{len(missing)} trainable tensors receive no gradient, so they would train in vain: {some}"
            + (" ..." if len(missing) > 5 else "")
            + "; narrow model_args.lora_target, check that the data reaches them (images for the vision tower), or add "
            "an objective that trains them (BoxLoss, MaskLoss)"
        )
    if unreached:
        raise ConfigError(
            f"the objectives {sorted(unreached)} reach nothing trainable of the model; remove them, or train what they "
            "see"
        )
    if idle:
        logger.warning("the objectives %s find nothing to learn from in the first batches of the data", sorted(idle))


@torch.no_grad()
def _check_loss(learner: Learner, student: LanguageModel, piece: Batch) -> None:
    """Our loss of one sample equals the one from the model's own logits.

    A family whose logits are scaled, shifted or capped in a way that we do not know is found here, not in a paper. Of
    packed samples one that stands behind another is compared with itself alone, so a leak is found too.
    """
    objective = dict(learner.named_objectives()).get("next_token")
    if objective is None or (piece.targets["labels"][:, 1:] != IGNORE).sum() == 0:
        return
    model = student.pretrained
    labels = piece.targets["labels"]
    counts = (labels[:, 1:] != IGNORE).sum(dim=1)
    behind = counts * followers(piece.student)
    sample = int((behind if behind.any() else counts).argmax())
    positions = (labels[sample, 1:] != IGNORE).nonzero().squeeze(1)[:64]
    wanted = labels[sample, positions + 1]
    ours = objective.total(Context({"labels": _only(labels, sample, positions + 1)}, student(**piece.student)))[sample]
    alone = piece.student
    if ROW in alone:
        alone = {name: tensor[sample : sample + 1] for name, tensor in alone.items()}
        sample = 0
    with student.inserting_objects(alone) as kwargs:
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            logits = model(**kwargs, logits_to_keep=positions).logits[sample]
        else:
            logits = model(**kwargs).logits[sample, positions]
    theirs = nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
    tolerance = TOLERANCE.get(model.get_output_embeddings().weight.dtype, 3e-2)
    if torch.is_autocast_enabled(labels.device.type):
        tolerance = TOLERANCE[torch.bfloat16]
    if not torch.isclose(ours.float(), theirs, rtol=tolerance, atol=1e-3):
        reason = "changes its logits in a way that this version does not know; please report it"
        if ROW in piece.student:
            reason = "lets the samples of a row see each other; set data_args.packing=False"
        raise ConfigError(
            f"the loss of the first batch is {float(ours):.4f}, but {float(theirs):.4f} from the model's own logits: "
            f"{type(model).__name__} {reason}"
        )


def _only(labels_BL: Tensor, sample: int, positions: Tensor) -> Tensor:
    """Labels with nothing supervised but some positions of one sample."""
    only = torch.full_like(labels_BL, IGNORE)
    only[sample, positions] = labels_BL[sample, positions]
    return only


def describe_batch(batch: LogicalBatch, bundle: Bundle, most: int = 4) -> str:
    """`first_batch.md`: what the model is shown and what it is asked to say, decoded from the very token ids."""
    encoder = bundle.encoder
    if isinstance(encoder, ViewEncoder):
        return _described_views(batch, encoder, most)
    tokenizer, image_ids = encoder.tokenizer, encoder.image_token_ids
    lines = [
        "# The first batch",
        "",
        f"Samples: {batch.samples}, in pieces: {len(batch.pieces)}, tokens: {batch.tokens} "
        f"({batch.padded_tokens} with padding). The first {min(most, batch.samples)}, decoded from their token ids; "
        "**bold** is supervised.",
    ]
    shown = 0
    for piece in batch.pieces:
        shapes = {name: tuple(tensor.shape) for name, tensor in piece.student.items()}
        lines += ["", f"## A piece of {piece.targets['labels'].shape[0]}", "", f"`{shapes}`"]
        for row in range(min(most - shown, piece.targets["labels"].shape[0])):
            ids, labels = piece.student["input_ids"][row], piece.targets["labels"][row]
            mask = piece.student["attention_mask"][row].bool()
            if "decoder_input_ids" in piece.student:  # the encoder's text, of which nothing is supervised, comes first
                source = ids[mask].tolist()
                lines += ["", _marked(source, [False] * len(source), tokenizer, image_ids)]
                ids, mask = piece.student["decoder_input_ids"][row], (labels != IGNORE)
                mask[0] = True
            lines += ["", _marked(ids[mask].tolist(), (labels[mask] != IGNORE).tolist(), tokenizer, image_ids)]
            shown += 1
        if shown >= most:
            break
    return "\n".join(lines) + "\n"


def _described_views(batch: LogicalBatch, encoder: ViewEncoder, most: int) -> str:
    """The same for a model without words: the views that it is shown, and the measures that it is asked for."""
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.pieces[0].student.items()}
    lines = [
        "# The first batch",
        "",
        f"Samples: {batch.samples}, in pieces: {len(batch.pieces)}; views {', '.join(encoder.views)}: `{shapes}`",
        "",
    ]
    targets = [piece.targets for piece in batch.pieces]
    rows = [row for target in targets for row in zip(target["measures"], target["measures_known"], strict=True)]
    for values, known in rows[:most]:
        told = zip(encoder.measures, values.tolist(), known.tolist(), strict=True)
        lines.append(
            f"> {encoder.answer({name: value for name, value, is_known in told if is_known}).text or 'unknown'}"
        )
    return "\n".join(lines) + "\n"


def _marked(ids: list[int], supervised: list[bool], tokenizer: Any, image_ids: Collection[int]) -> str:
    """Token ids as text, image tokens counted, supervised stretches in bold."""
    stretches: list[tuple[str, list[int]]] = []
    for token, spoken in zip(ids, supervised, strict=True):
        kind = "image" if token in image_ids else "answer" if spoken else "prompt"
        if not stretches or stretches[-1][0] != kind:
            stretches.append((kind, []))
        stretches[-1][1].append(token)
    parts = []
    for kind, tokens in stretches:
        text = tokenizer.decode(tokens).replace("<", "\\<").replace("\n", "⏎")
        parts.append(
            f"[{len(tokens)} image tokens]" if kind == "image" else f"**{text}**" if kind == "answer" else text
        )
    return "> " + "".join(parts)
