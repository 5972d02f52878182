"""Added tokens: only their rows are trained, and the loss equals that of a table that contains them."""

import bitsandbytes as bnb
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.backbone.added_tokens import TokenRows, add_tokens
from mllm.models.builder.builder import load_pretrained
from mllm.objectives.text import NextToken, token_losses
from mllm.structures import Context, Mark, Sample, Turn

TOKENS = ("<loc>", "<obj_vis_s>", "<obj_vis_e>")


@pytest.fixture(params=["tiny_medgemma", "tiny_llava"])
def parts(request):
    folder = request.getfixturevalue(request.param)
    model = AutoModelForImageTextToText.from_pretrained(folder).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = add_tokens(model, tokenizer, TOKENS)
    return model, tokenizer, ids, TokenRows(model, ids)


def test_tokens_are_not_split_and_have_rows(parts):
    model, tokenizer, ids, rows = parts
    assert tokenizer("a <loc>", add_special_tokens=False)["input_ids"][-1] == ids[0]
    assert model.get_input_embeddings().weight.shape[0] > max(ids)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (rows.output is None) == tied
    assert add_tokens(model, tokenizer, TOKENS) == ids


def test_only_their_rows_are_replaced_and_trained(parts):
    model, _, ids, rows = parts
    table, projection = model.get_input_embeddings(), model.get_output_embeddings()
    tokens = torch.tensor([[5, ids[1], 7, ids[0]]])
    scale = float(table._buffers["embed_scale"]) if "embed_scale" in table._buffers else 1.0
    order = [int(place) for place in torch.searchsorted(rows.ids, tokens[0, [1, 3]])]
    embedded = table(tokens)
    assert torch.allclose(embedded[0, [1, 3]], rows.input[order] * scale, atol=1e-5)
    assert torch.equal(embedded[0, [0, 2]], torch.nn.functional.embedding(tokens[0, [0, 2]], table.weight) * scale)
    hidden = torch.randn(2, table.weight.shape[1])
    logits, plain = projection(hidden), hidden @ projection.weight.T
    own = rows.input if rows.output is None else rows.output
    assert torch.allclose(logits[:, rows.ids], hidden @ own.T, atol=1e-5)
    others = torch.ones(plain.shape[1], dtype=torch.bool)
    others[rows.ids] = False
    assert torch.allclose(logits[:, others], plain[:, others], atol=1e-6)
    (embedded.square().sum() + logits.square().sum()).backward()
    assert all(parameter.grad.any() for parameter in rows.parameters())
    assert table.weight.grad is None and projection.weight.grad is None


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("tile_bytes", [20_000, 64 * 2**20])
def test_the_loss_is_that_of_full_logits(parts, softcap, tile_bytes):
    model, _, ids, rows = parts
    torch.manual_seed(0)
    projection = model.get_output_embeddings()
    width = projection.weight.shape[1]
    labels = torch.tensor([3, ids[0], 900, ids[2], ids[0], 17])
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 3.0])
    hidden = torch.randn(6, width, requires_grad=True)
    actual = token_losses(hidden, labels, projection, softcap, tile_bytes, rows.vocabulary)
    (actual * weights).sum().backward()
    own = rows.input if rows.output is None else rows.output
    ours = [hidden.grad.clone(), own.grad.clone()]
    hidden.grad = own.grad = None
    full = projection.weight.detach().index_copy(0, rows.ids, own)
    logits = hidden @ full.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(actual, expected, atol=1e-4)
    (expected * weights).sum().backward()
    for mine, theirs in zip(ours, (hidden.grad, own.grad), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    assert ours[1].abs().max() > 0.1


def test_folding_writes_the_rows_into_the_tables(parts):
    model, _, _, rows = parts
    with torch.no_grad():
        for parameter in rows.parameters():
            parameter.add_(torch.randn_like(parameter))
        ids = torch.tensor([[5, int(rows.ids[0]), 7]])
        hooked = model(input_ids=ids).logits
    rows.fold(model)
    assert torch.equal(model.get_input_embeddings().weight[rows.ids], rows.input)
    again = TokenRows(model, rows.ids.tolist())
    assert torch.equal(again.input, rows.input)
    with torch.no_grad():
        again.input.zero_()  # hooks of the first rows that were not removed would replace these rows
        assert not torch.allclose(model(input_ids=ids).logits, hooked, atol=1e-3)
        again.fold(model)
        rows.fold(model)
        torch.testing.assert_close(model(input_ids=ids).logits, hooked)


LOCATIONS = tuple(f"<bin_{number}>" for number in range(100))


@pytest.mark.parametrize("name", ["tiny_medgemma", "tiny_llava"])
def test_tables_grow_for_tokens_beyond_their_rows(name, request):
    """More tokens than unused rows: old rows are unchanged, new ones are near the mean and equal in every run."""
    folder = request.getfixturevalue(name)
    new_rows = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, tokenizer = AutoModelForImageTextToText.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        old = [table.weight.detach().clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        ids = add_tokens(model, tokenizer, LOCATIONS)
        tables = [model.get_input_embeddings(), model.get_output_embeddings()]
        assert (tables[0].weight is tables[1].weight) == tied == (name == "tiny_medgemma")
        for before, table in zip(old, tables, strict=True):
            assert len(before) < len(table.weight) == max(ids) + 1 == model.config.get_text_config().vocab_size
            assert not table.weight.requires_grad
            assert torch.equal(table.weight[: min(ids)], before[: min(ids)])
            far = (table.weight[ids] - before.mean(dim=0)) / before.std(dim=0)
            assert 0.05 < float(far.std()) < 0.15 and float(far.std(dim=0).min()) > 0.02, "each token has its own row"
        new_rows.append([table.weight.detach() for table in tables])
        rows = TokenRows(model, ids)
        torch.testing.assert_close(rows.input, tables[0].weight[ids])
        tokens = torch.tensor([[5, *ids]])
        with torch.no_grad():
            stock = AutoModelForImageTextToText.from_pretrained(folder)
            stock.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
            stock.get_input_embeddings().weight.copy_(tables[0].weight)
            stock.get_output_embeddings().weight.copy_(tables[1].weight)
            torch.testing.assert_close(model(input_ids=tokens).logits, stock(input_ids=tokens).logits)
    assert all(torch.equal(one, other) for one, other in zip(*new_rows, strict=True))


@pytest.mark.parametrize("name", ["tiny_medgemma", "tiny_llava"])
@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"precision": "bf16"}, {"load_in_4bit": True}])
def test_training_changes_only_their_rows(name, options, request):
    """With the builder, for every kind of weights: apart from the rows, only the adapter changes."""
    folder, precision = request.getfixturevalue(name), options.get("precision", "fp32")
    quantized = options.get("load_in_4bit", False)
    kind = "medgemma" if name == "tiny_medgemma" else "image-text"
    bundle = load_pretrained(
        ModelArgs(
            kind,
            str(folder),
            lora_r=4,
            load_in_4bit=quantized,
            box_format={"type": "location_tokens", "num_bins": 11},
            image_size=112 if kind == "medgemma" else None,
            image_token_len=16 if kind == "medgemma" else None,
        ),
        Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2, precision),
    )
    model, rows = bundle.model, bundle.model.rows
    picture = Image.new("RGB", (64, 48), (200, 30, 90))
    turns = [Turn("user", "<image> Where?"), Turn("assistant", "Here: <box>", ((0,),))]
    batch = bundle.encoder.pad([bundle.encoder.encode(Sample(turns, [picture], marks=[Mark(box=(0, 0, 32, 24))]))])
    supervised = set(batch.targets["labels"].flatten().tolist()) & set(rows.ids.tolist())
    assert len(supervised) >= 4
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = None
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(**batch.student)
            loss = NextToken().total(Context(batch.targets, outputs)).sum()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7 * first
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    tied = kind == "medgemma"
    assert {name for name in changed if "lora_" not in name} == {"rows.input", *([] if tied else ["rows.output"])}
    assert rows.input.dtype is torch.float32
    tables = model.pretrained.get_input_embeddings(), model.pretrained.get_output_embeddings()
    assert (tables[0].weight is tables[1].weight) == tied
    with torch.no_grad():
        own = model.eval()(**batch.student)
        theirs = model.pretrained(**batch.student).logits
        torch.testing.assert_close(own.vocabulary(own.hidden_BLD), theirs, rtol=0, atol=1e-5)


def test_a_quantized_vocabulary_is_refused(tiny_llava):
    model, tokenizer = (
        AutoModelForImageTextToText.from_pretrained(tiny_llava),
        AutoTokenizer.from_pretrained(tiny_llava),
    )
    model.lm_head = bnb.nn.Linear4bit(128, model.config.text_config.vocab_size, bias=False)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match="the checkpoint's vocabulary is quantized, so no tokens can be added"):
        add_tokens(model, tokenizer, TOKENS)
