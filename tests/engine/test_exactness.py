"""Two ways to compute a micro-batch are compared by their loss and gradients."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mllm.config.hardware import CHECKOUT
from mllm.config.reading import read_config
from mllm.engine.exactness import Pass, agreement, norms_of
from mllm.errors import ConfigError
from mllm.run.kernels import compare_attention


def test_a_pass_is_repeatable_with_dropout_and_changes_nothing(make_trainer):
    trainer = make_trainer(dropout=0.5)
    piece, state = trainer.first_batch().pieces[0], torch.get_rng_state()
    trainer.learner.eval()
    first, second = (Pass.of(trainer.learner, piece, trainer.autocast) for _ in range(2))
    assert first.differences(second) == (0.0, 0.0) and first.gradients
    assert torch.equal(torch.get_rng_state(), state) and not trainer.learner.training
    assert all(parameter.grad is None for parameter in trainer.learner.parameters())
    norm = next(module for name, module in trainer.learner.named_modules() if name.endswith("input_layernorm"))
    norm.eps *= 1e4
    with pytest.raises(ConfigError, match=r"run\.py:3: x=True changes the training on this device: loss .*; remove it"):
        agreement(Pass.of(trainer.learner, piece, trainer.autocast), first, "fp32", "run.py:3: x=True")


def test_the_precision_decides_what_is_equal():
    one = Pass(torch.tensor(1.0), [torch.ones(3), torch.zeros(2)])
    near = Pass(torch.tensor(1.005), [torch.full((3,), 1.02), torch.zeros(2)])
    assert agreement(near, one, "bf16", "x") == "loss 5.0e-03, gradients 2.0e-02 (limits 0.01 and 0.05, relative)"
    not_finite, other = Pass(torch.tensor(float("nan")), one.gradients), Pass(one.loss, near.gradients)
    for wrong in (near, not_finite, other):
        with pytest.raises(ConfigError, match="x changes the training"):
            agreement(wrong, one, "fp32", "x")


def test_gradients_of_the_first_pass_are_on_the_host():
    """Fake tensors have a GPU without one, and refuse operations of several devices."""
    with FakeTensorMode():
        on_device = Pass(torch.ones((), device="cuda"), [torch.ones(2, 3, device="cuda", dtype=torch.bfloat16)])
        expected = on_device.on_host()
        assert [gradient.device.type for gradient in expected.gradients] == ["cpu"]
        norms = norms_of(on_device.gradients[0], expected.gradients[0])
    assert (norms.device.type, norms.dtype, norms.shape) == ("cuda", torch.float64, (2,))


def test_an_attention_that_attends_to_later_tokens_is_refused(make_trainer, monkeypatch):
    """As a package for FlashAttention of another version could; another implementation of the same mask is accepted."""
    config = read_config(CHECKOUT / "config" / "training_configs" / "medgemma_4gb_test.py")
    trainer = make_trainer()
    piece, model = trainer.first_batch().pieces[0], trainer.learner.student.pretrained
    language = model.config.get_text_config(decoder=True)
    language._attn_implementation = "eager"
    compare_attention(config, trainer, piece, "fp32", "eager")
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._global_mapping,
        "leaking",
        lambda module, query, key, value, mask, **options: sdpa(
            module, query, key, value, None, **{**options, "is_causal": False}
        ),
    )
    language._attn_implementation = "leaking"
    with pytest.raises(ConfigError, match=r"attn_implementation='leaking' changes the training on this device"):
        compare_attention(config, trainer, piece, "fp32", "leaking")
    assert language._attn_implementation == "leaking"
