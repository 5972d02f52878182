"""FlexAttention of segments is compared with a dense mask, and with SDPA for the heads of all families with rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import enable_tf32

from mllm.config.rules.packing import PACKED, PACKED_IMAGES
from mllm.config.rules.sharing import SHARED
from mllm.models.backbone import flex_check, flex_segments
from mllm.models.backbone.flex_check import ROW as CHECKED
from mllm.models.backbone.flex_check import TF32_TOLERANCE, Heads, disagreement, limit_of, reason_against_flex
from mllm.models.backbone.flex_segments import RowMask
from mllm.models.backbone.segment_attention import RowAttention, Segment, Segments, segment_attention
from tests.models.backbone.test_segment_attention import ROW, attend, dense_mask, model  # noqa: F401
from tests.support.flex import flex_on_cpu

CPU = torch.device("cpu")
HEADS = Heads(2, 1, 8, None, 0.0)
DEEP = [
    Segment(0, 40, blocks=((3, 20), (25, 30))),
    Segment(40, 70, prefix=((0, 35),), blocks=((2, 9),)),
    Segment(70, 75, prefix=((0, 35), (40, 60))),
    Segment(75, 76, prefix=((0, 35), (40, 60))),
    Segment(76, 190),
    Segment(190, 230, prefix=((0, 35), (40, 60), (70, 72))),
    Segment(230, 300, prefix=((76, 120),)),
    Segment(300, 310, prefix=((0, 10),)),
]
"""Branches of branches, two of which leave one token, and blocks of a branch."""


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> RowAttention:
    return flex_on_cpu(monkeypatch)


@pytest.mark.parametrize("window", [None, 6, 3])
@pytest.mark.parametrize("heads", [4, 2])
def test_outputs_and_gradients_are_those_of_a_dense_mask(flex, window, heads):
    actual, gradients = attend(Segments(ROW, flex), window, heads)
    expected, others = attend(dense_mask(window)[None, None], window, heads)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 25])
def test_a_token_attends_to_its_ancestors_and_to_its_image(window):
    """Expected: a walk from each token to the start of its sample."""
    mask = RowMask.of(Segments(DEEP), window, CPU)
    rows = torch.arange(len(mask))
    expected = torch.zeros(len(mask), len(mask), dtype=torch.bool)
    for segment in DEEP:
        path = [token for run in segment.prefix for token in range(*run)]
        for token in range(segment.start, segment.end):
            path.append(token)
            expected[token, path if window is None else path[-window:]] = True
        for start, end in segment.blocks:
            block = slice(segment.start + start, segment.start + end)
            expected[block, block] = True
    assert torch.equal(mask.mask_mod()(None, None, rows[:, None], rows[None]), expected)
    blocks = mask.blocks().to_dense()[0, 0].bool()
    assert torch.equal(blocks, expected.view(4, 128, 4, 128).any(dim=3).any(dim=1))
    assert mask.blocks().full_kv_num_blocks.sum() == expected.view(4, 128, 4, 128).all(dim=3).all(dim=1).sum()


def test_blocks_are_found_once_for_each_window(flex, monkeypatch):
    calls, blocks = [], RowMask.blocks
    monkeypatch.setattr(RowMask, "blocks", lambda mask: (calls.append(int(mask.window)), blocks(mask))[1])
    segments = Segments(ROW, flex)
    for window in (6, None, 6, None):
        attend(segments, window)
    assert sorted(calls) == [6, 128]


def kinds_of_heads() -> dict[tuple[bool, float | None], list[str]]:
    """Return the families with rows by the kind of their heads: several queries for each key, and the cap."""
    kinds: dict[tuple[bool, float | None], list[str]] = {}
    for family in sorted({*PACKED, *SHARED, *PACKED_IMAGES}):
        heads = Heads.of(AutoConfig.for_model(family).get_text_config(decoder=True))
        assert heads.queries % heads.keys == 0 and heads.size > 1 and not heads.dropout
        kinds.setdefault((heads.queries > heads.keys, heads.softcap), []).append(family)
    return kinds


@pytest.mark.parametrize(("kind", "families"), kinds_of_heads().items(), ids=lambda item: "-".join(map(str, item)))
def test_families_attend_as_with_sdpa(flex, kind, families, monkeypatch):
    """The check at the start of a run, with small heads."""
    is_grouped, softcap = kind
    monkeypatch.setitem(flex_check.TOLERANCE, torch.float32, 1e-6)
    assert disagreement(Heads(4, 2 if is_grouped else 4, 8, softcap, 0.0), CPU, torch.float32) is None


def test_caps_are_read_from_the_config():
    assert Heads.of(AutoConfig.for_model("gemma2")).softcap == 50.0
    assert Heads.of(AutoConfig.for_model("llama")).softcap is None


def test_a_device_on_which_it_is_wrong_has_a_reason(flex, monkeypatch):
    """One position more in each window."""
    of = RowMask.of
    monkeypatch.setattr(RowMask, "of", lambda segments, window, device: of(segments, window and window + 1, device))
    reason = disagreement(HEADS, CPU, torch.float32)
    assert reason.startswith("FlexAttention differs from SDPA on this device: outputs in a window by ")
    assert reason.count(" in a window by ") == 4 and reason.endswith(" (limit 0.0001)")


def test_a_device_on_which_it_is_not_finite_has_a_reason(flex, monkeypatch):
    monkeypatch.setattr(flex_segments, "_compiled", lambda: lambda *states, **options: sum(states) * float("nan"))
    assert "gradients of the value by nan" in disagreement(Heads(2, 2, 8, None, 0.0), CPU, torch.float32)


def test_a_device_on_which_it_fails_has_a_reason(monkeypatch):
    monkeypatch.setattr(flex_segments, "_compiled", lambda: _raise(RuntimeError("no kernel image")))
    assert "failed on this device (RuntimeError: no kernel image)" in disagreement(HEADS, CPU, torch.float32)
    monkeypatch.setattr(flex_segments, "_compiled", lambda: _raise(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        disagreement(HEADS, CPU, torch.float32)


@pytest.mark.parametrize("is_older_setting", [False, True])
def test_tf32_has_a_larger_limit(is_older_setting):
    assert limit_of(torch.float32) == flex_check.TOLERANCE[torch.float32]
    if is_older_setting:
        torch.set_float32_matmul_precision("high")
    else:  # as `training_args.tf32=True`
        enable_tf32.cache_clear()
        enable_tf32(True)
    try:
        assert limit_of(torch.float32) == TF32_TOLERANCE
        assert limit_of(torch.bfloat16) == flex_check.TOLERANCE[torch.bfloat16]
    finally:
        enable_tf32.cache_clear()
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


def _raise(error: Exception) -> Callable[..., torch.Tensor]:
    """Return a function that raises an error."""

    def function(*arguments: object, **options: object) -> torch.Tensor:
        raise error

    return function


def test_reasons_without_a_check():
    config, bf16 = AutoConfig.for_model("llama"), torch.bfloat16
    assert reason_against_flex(config, "cpu", None, bf16) == "FlexAttention has no backward pass on a CPU"
    assert "the GPU has 7.5" in reason_against_flex(config, "cuda", (7, 5), bf16)
    config.attention_dropout = 0.1
    assert "attention_dropout of the checkpoint is 0.1" in reason_against_flex(config, "cuda", (8, 0), bf16)


def test_dropout_is_computed_by_sdpa(flex, monkeypatch):
    monkeypatch.setattr(flex_segments, "_compiled", None)
    states = torch.randn(1, 2, CHECKED[-1].end, 16)
    output, _ = segment_attention(nn.Module(), states, states, states, Segments(CHECKED, flex), dropout=0.5)
    assert output.shape == (1, CHECKED[-1].end, 2, 16)
