"""Kernels of Liger compute the losses and gradients of transformers.

The interpreter of Triton runs them on a CPU, in a process of its own, because it is chosen when Triton is imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from mllm.config.hardware import CHECKOUT
from mllm.errors import ConfigError
from mllm.models.backbone import liger

SCRIPT = """
import numpy, torch, triton.language as tl
from liger_kernel.ops import geglu, rms_norm
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma3 import modeling_gemma3
from triton.runtime import interpreter
from mllm.models.backbone.liger import use_liger_kernels
from mllm.tiny.parts import random_model

# The interpreter has no functions of libdevice, and passes numbers as those of Python, which have no `to`.
rms_norm.rsqrt = lambda x: 1.0 / tl.sqrt(x)
geglu.tanh = lambda x: 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
convert = interpreter._implicit_cvt
def converted(value):
    if not isinstance(value, float):
        return convert(value)
    return tl.tensor(interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), tl.float32), tl.float32)
interpreter._implicit_cvt = converted

sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
for family in ("llama", "gemma3_text"):
    config = AutoConfig.for_model(family, **sizes, head_dim=16, vocab_size=64, pad_token_id=0)
    model = random_model(type(AutoModelForCausalLM.from_config(config)), config, seed=0).train()
    ids = torch.arange(3, 11)[None]
    def losses_and_gradients():
        loss = model(ids, labels=ids).loss
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    expected, names = losses_and_gradients(), use_liger_kernels(model, "cpu")
    assert names == (["rms_norm", "rope", "swiglu"] if family == "llama" else ["geglu", "rms_norm", "rope"])
    found = losses_and_gradients()
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected) if b.any())
    assert 0 < worst < 1e-5, worst  # not 0: the kernels were used
assert modeling_gemma3.Gemma3RMSNorm.__module__ == modeling_gemma3.__name__, "new models have the class of transformers"
"""


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_losses_and_gradients_are_those_of_transformers():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.fixture
def package(monkeypatch):
    """A function that installs a package with the function of Liger that replaces layers of 'toy' models."""

    def install(apply) -> None:
        monkey_patch = ModuleType("liger_kernel.transformers.monkey_patch")
        monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"toy": apply}
        monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", monkey_patch)
        monkeypatch.setattr(liger.metadata, "version", lambda name: "1.2.3")

    return install


class Toy(nn.Linear):
    """Language model whose layers Liger replaces."""

    def __init__(self, architecture: str = "toy") -> None:
        super().__init__(2, 2)
        self.config = SimpleNamespace(model_type=architecture)

    def get_decoder(self) -> Toy:
        return self


def apply_rotary_pos_emb(query):
    """Stand for that of a module of transformers."""
    return query


def test_only_kernels_outside_of_the_loss_are_used_and_only_on_the_device(package):
    switches, plain = {}, apply_rotary_pos_emb

    def apply(rope=True, rms_norm=True, layer_norm=True, fused_linear_cross_entropy=True, model=None):
        switches.update(locals())
        globals()["apply_rotary_pos_emb"] = lambda query: query + 1
        model.forward = lambda x: x * 10

    package(apply)
    toy, x = Toy(), torch.ones(2)
    expected = toy(x)
    try:
        assert liger.use_liger_kernels(toy, "meta") == ["rms_norm", "rope"]
        assert [name for name, value in switches.items() if value is True] == ["rope", "rms_norm"]
        assert torch.equal(toy(x), expected) and torch.equal(apply_rotary_pos_emb(x), x), "the CPU computes as before"
        assert toy(x.to("meta")).device.type == "meta" and "forward" in vars(toy)
    finally:
        globals()["apply_rotary_pos_emb"] = plain


def test_a_kernel_for_positions_that_is_not_used_is_not_named(package, monkeypatch):
    def without(rms_norm=True, rope=False, model=None):
        if rope:
            raise NotImplementedError("no rope")

    def skipping(rms_norm=True, rope=True, model=None):
        pass

    for apply in (without, skipping):
        package(apply)
        assert liger.use_liger_kernels(Toy()) == ["rms_norm"]
    monkeypatch.delitem(globals(), "apply_rotary_pos_emb")  # as in models that rotate complex numbers
    assert liger.use_liger_kernels(Toy()) == ["rms_norm"]


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError])
def test_other_models_and_versions_are_refused(package, error):
    def apply(rms_norm=True, model=None):
        raise error("no attribute 'q_norm'")

    package(apply)
    with pytest.raises(ConfigError, match=r"not possible with 'other' models, for which liger-kernel 1\.2\.3 has no"):
        liger.use_liger_kernels(Toy("other"))
    with pytest.raises(ConfigError, match=r"liger-kernel 1\.2\.3 does not fit this model .* \(no attribute 'q_norm'\)"):
        liger.use_liger_kernels(Toy())
