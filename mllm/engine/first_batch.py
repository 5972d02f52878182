"""Description of the first logical batch, for `first_batch.md`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mllm.contents import measures_text
from mllm.protocols import Encoder
from mllm.structures import IGNORE, LogicalBatch, OnHost


def describe_batch(batch: LogicalBatch, encoder: Encoder, limit: int = 4) -> str:
    """Return the contents of `first_batch.md`: shapes and up to `limit` samples, decoded from their token ids."""
    if encoder.views:
        return _describe_views(batch, encoder, limit)
    tokenizer, image_ids = encoder.tokenizer, encoder.image_token_ids
    lines = [
        "# The first batch",
        "",
        f"Samples: {batch.samples}, in pieces: {len(batch.pieces)}, tokens: {batch.tokens} "
        f"({batch.padded_tokens} with padding). The first {min(limit, batch.samples)}, decoded from their token ids; "
        "**bold** is supervised.",
    ]
    described = 0
    for piece in batch.pieces:
        tensors = {name: item for name, item in piece.student.items() if not isinstance(item, OnHost)}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        lines += ["", f"## A piece of {piece.targets['labels'].shape[0]}", "", f"`{shapes}`"]
        for row in range(min(limit - described, piece.targets["labels"].shape[0])):
            ids, labels = piece.student["input_ids"][row], piece.targets["labels"][row]
            mask = piece.student["attention_mask"][row].bool()
            if "decoder_input_ids" in piece.student:  # the text of the encoder comes first; it is not supervised
                source = ids[mask].tolist()
                lines += ["", _marked(source, [False] * len(source), tokenizer, image_ids)]
                ids, mask = piece.student["decoder_input_ids"][row], (labels != IGNORE)
                mask[0] = True
            lines += ["", _marked(ids[mask].tolist(), (labels[mask] != IGNORE).tolist(), tokenizer, image_ids)]
            described += 1
        if described >= limit:
            break
    return "\n".join(lines) + "\n"


def _describe_views(batch: LogicalBatch, encoder: Encoder, limit: int) -> str:
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
        text = measures_text({name: value for name, value, is_known in measures if is_known})
        lines.append(f"> {text or 'unknown'}")
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
