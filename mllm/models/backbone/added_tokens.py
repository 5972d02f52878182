"""Special tokens added to a vocabulary. Only their own rows of the tables are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from mllm.errors import ConfigError

NOISE = 0.1
"""Standard deviation of new rows around the mean row, relative to that of the existing rows."""


def add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Add special tokens to the tokenizer and return their ids. The tables of the model are resized if necessary.

    Gemma's tables have unused rows. New tokens start near the mean row, equal in every run; tokens that the tokenizer
    already has keep their rows. Resized tables stay frozen. Raise `ConfigError` if a table is quantized.
    """
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    converted: Any = tokenizer.convert_tokens_to_ids(list(tokens))
    ids = [int(index) for index in converted]
    before = len(_weight(model.get_input_embeddings()))
    if max(ids) >= before:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    added = range(before, len(_weight(model.get_input_embeddings())))
    new = sorted({index for token, index in zip(tokens, ids, strict=True) if token not in known} | set(added))
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    for table in tables[:1] if _weight(tables[0]) is _weight(tables[1]) else tables:
        table.requires_grad_(False)
        _initialize_near_mean(_weight(table), new, before)
    return ids


class TokenRows(nn.Module):
    """Rows of some tokens in the embedding and in the output projection, as trainable parameters in fp32.

    They start as the rows of the tables and replace them by hooks, so the tables stay frozen, shared and in their
    stored dtype. If the tables are tied, there is one parameter for both.
    """

    def __init__(self, model: PreTrainedModel, ids: Sequence[int]) -> None:
        super().__init__()
        table, projection = model.get_input_embeddings(), model.get_output_embeddings()
        inputs, outputs = _weight(table), _weight(projection)
        self.register_buffer("ids", torch.tensor(sorted(ids), device=inputs.device), persistent=False)
        self.input = nn.Parameter(inputs[self._ids].detach().float())
        self.output = None if inputs is outputs else nn.Parameter(outputs[self._ids].detach().float())
        self._hooks = [table.register_forward_hook(self._embed), projection.register_forward_hook(self._project)]

    @property
    def vocabulary(self) -> tuple[Tensor, Tensor]:
        """Return the ids [R] and their weights [R, D] in the output projection."""
        return self._ids, self.input if self.output is None else self.output

    @property
    def _ids(self) -> Tensor:
        ids = self.ids
        assert isinstance(ids, Tensor)
        return ids

    @torch.no_grad()
    def fold(self, model: PreTrainedModel) -> None:
        """Copy the rows into the tables of the model and remove the hooks."""
        ids, output = self.vocabulary
        for module, rows in ((model.get_input_embeddings(), self.input), (model.get_output_embeddings(), output)):
            weight = _weight(module)
            weight[ids] = rows.to(weight.dtype)
        while self._hooks:
            self._hooks.pop().remove()

    def _embed(self, table: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        """Replace the embeddings of the added tokens."""
        tokens = arguments[0]
        index = torch.searchsorted(self._ids, tokens).clamp_max(len(self._ids) - 1)
        scale = table._buffers.get("embed_scale")  # Gemma multiplies its embeddings
        rows = self.input if scale is None else self.input * scale.to(embedded.dtype).float()
        is_added = (self._ids[index] == tokens)[..., None]
        return torch.where(is_added, rows[index].to(embedded.dtype), embedded)

    def _project(self, projection: nn.Module, arguments: tuple[Any, ...], logits: Tensor) -> Tensor:
        """Replace the logits of the added tokens."""
        ids, rows = self.vocabulary
        replaced = arguments[0].float() @ rows.T
        return logits.index_copy(-1, ids, replaced.to(logits.dtype))


def _weight(module: Any) -> Tensor:
    """Return the table [V, D] of an embedding or an output projection."""
    weight: Tensor = module.weight
    if not weight.is_floating_point():
        raise ConfigError(
            "the checkpoint's vocabulary is quantized, so no tokens can be added: use box_format normalized_text"
        )
    return weight


@torch.no_grad()
def _initialize_near_mean(table: Tensor, new: Sequence[int], before: int) -> None:
    """Initialize rows of a table near the mean of its first `before` rows."""
    sample = table[: before : max(1, before // 1000)].float()  # a thousand rows are enough for the mean
    noise = torch.randn(len(new), table.shape[1], generator=torch.Generator().manual_seed(0)).to(table.device)
    table[list(new)] = (sample.mean(dim=0) + NOISE * sample.std(dim=0) * noise).to(table.dtype)
