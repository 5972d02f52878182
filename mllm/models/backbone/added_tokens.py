"""Special tokens added to a model's vocabulary, of which nothing trains but their own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from mllm.errors import ConfigError

NOISE = 0.1
"""How far new rows lie from the mean row, as a share of the rows' own spread."""


def add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Makes `tokens` special tokens of the tokenizer, and gives their ids; the model's tables grow where they must.

    Gemma's tables have rows to spare. New tokens begin near the mean row, the same in every run; those that the
    tokenizer knew keep the rows that they have. What grows is frozen as the rest. Raises `ConfigError` where a table is
    quantized.
    """
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    named: Any = tokenizer.convert_tokens_to_ids(list(tokens))
    ids = [int(index) for index in named]
    before = len(_weight(model.get_input_embeddings()))
    if max(ids) >= before:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    grown = range(before, len(_weight(model.get_input_embeddings())))
    new = sorted({index for token, index in zip(tokens, ids, strict=True) if token not in known} | set(grown))
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    for table in tables[:1] if _weight(tables[0]) is _weight(tables[1]) else tables:
        table.requires_grad_(False)
        _begin_near_mean(_weight(table), new, before)
    return ids


class TokenRows(nn.Module):
    """The rows of some tokens in the embedding and in the output projection, as parameters of their own, fp32.

    They begin as the tables' rows and take their place by hooks, so the tables stay frozen, shared and whatever they
    are stored as. Where the tables are tied there is one parameter for both.
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
        """The ids [R] and their weights [R, D] in the output projection."""
        return self._ids, self.input if self.output is None else self.output

    @property
    def _ids(self) -> Tensor:
        ids = self.ids
        assert isinstance(ids, Tensor)
        return ids

    @torch.no_grad()
    def fold(self, model: PreTrainedModel) -> None:
        """Writes the rows into the model's own tables, where every other program finds them, and removes the hooks."""
        ids, output = self.vocabulary
        for module, rows in ((model.get_input_embeddings(), self.input), (model.get_output_embeddings(), output)):
            weight = _weight(module)
            weight[ids] = rows.to(weight.dtype)
        while self._hooks:
            self._hooks.pop().remove()

    def _embed(self, table: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        """Replaces the embeddings of these tokens."""
        tokens = arguments[0]
        place = torch.searchsorted(self._ids, tokens).clamp_max(len(self._ids) - 1)
        scale = table._buffers.get("embed_scale")  # Gemma multiplies its embeddings
        rows = self.input if scale is None else self.input * scale.to(embedded.dtype).float()
        mine = (self._ids[place] == tokens)[..., None]
        return torch.where(mine, rows[place].to(embedded.dtype), embedded)

    def _project(self, projection: nn.Module, arguments: tuple[Any, ...], logits: Tensor) -> Tensor:
        """Replaces the logits of these tokens."""
        ids, rows = self.vocabulary
        own = arguments[0].float() @ rows.T
        return logits.index_copy(-1, ids, own.to(logits.dtype))


def _weight(module: Any) -> Tensor:
    """The table [V, D] of an embedding or an output projection."""
    weight: Tensor = module.weight
    if not weight.is_floating_point():
        raise ConfigError(
            "the checkpoint's vocabulary is quantized, so no tokens can be added: use box_format normalized_text"
        )
    return weight


@torch.no_grad()
def _begin_near_mean(table: Tensor, new: Sequence[int], before: int) -> None:
    """Fills rows of a table near the mean of its first `before` rows."""
    sample = table[: before : max(1, before // 1000)].float()  # a thousand rows tell the mean well enough
    noise = torch.randn(len(new), table.shape[1], generator=torch.Generator().manual_seed(0)).to(table.device)
    table[list(new)] = (sample.mean(dim=0) + NOISE * sample.std(dim=0) * noise).to(table.dtype)
