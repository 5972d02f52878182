"""Training over fp16, 8-bit and 4-bit weights of a model whose activations exceed fp16."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from small_gemma import inputs as small_inputs
from torch import nn
from transformers import BitsAndBytesConfig, Gemma3ForConditionalGeneration

from mllm.models.adapters.attach import attach_adapter
from mllm.models.adapters.combine import save_adapter
from mllm.models.backbone.half_safe import (
    HalfSafeEmbedding,
    HalfSafeLinear,
    half_safe_linear,
    keep_residual_in_fp32,
    row_scales,
)
from mllm.models.medgemma.family import LORA_TARGETS

FP16_MAX = 65504
STORAGES = ["fp16", "8bit", "4bit"]


@pytest.fixture(scope="module")
def overflowing(small_gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 whose residual streams in language and vision exceed fp16; its weights do not."""
    model = Gemma3ForConditionalGeneration.from_pretrained(small_gemma)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                norm.weight.copy_(3e4 * (1 + norm.weight) - 1)  # Gemma multiplies by 1 + weight
        for layer in model.model.vision_tower.encoder.layers:
            layer.self_attn.out_proj.weight.mul_(6e4)
            layer.mlp.fc2.weight.mul_(3e3)
    assert max(float(parameter.detach().abs().max()) for parameter in model.parameters()) < FP16_MAX
    folder = tmp_path_factory.mktemp("large") / "model"
    model.save_pretrained(folder)
    return folder


def load(folder: Path, storage: str) -> Gemma3ForConditionalGeneration:
    quantization = {
        "fp16": None,
        "8bit": BitsAndBytesConfig(load_in_8bit=True),
        "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    }[storage]
    options = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": "cpu"}}
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float16, **options)
    return model.requires_grad_(False)


def reference(folder: Path, stored: nn.Module) -> Gemma3ForConditionalGeneration:
    """Return the model in fp32 with the dequantized weights of `stored`."""
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    for name, layer in stored.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            weight = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
        else:
            continue
        model.get_submodule(name).weight.data = weight.float()
    return model


def adapted(model: Gemma3ForConditionalGeneration, **options: object) -> PeftModel:
    """Return the model with an adapter in every layer of both towers, with constant random B matrices."""
    torch.manual_seed(0)
    peft = attach_adapter(model, targets=LORA_TARGETS, lora_r=4, lora_target="all", **options)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return peft


def batch(model: nn.Module) -> dict[str, torch.Tensor]:
    return small_inputs(model, words=24)


def gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the logits after the image, and the gradients of the next-token loss of these positions."""
    inputs = batch(model)
    model.zero_grad()
    logits = model(**inputs).logits[:, 260:]
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), inputs["input_ids"][:, 261:].flatten())
    loss.backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


def watch(model: nn.Module) -> dict[str, tuple[torch.dtype, float]]:
    """Return a dict of the dtype and the largest magnitude of the output of each module, which forward passes fill."""
    outputs: dict[str, tuple[torch.dtype, float]] = {}

    def record(name: str, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            outputs[name] = (tensor.dtype, float(tensor.detach().abs().max()))

    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, inputs, output, name=name: record(name, output))
    return outputs


def test_plain_fp16_overflows(overflowing):
    model = load(overflowing, "fp16")
    with torch.no_grad():
        logits = model(**batch(model)).logits
    assert not logits.isfinite().all()


@pytest.mark.parametrize("storage", STORAGES)
def test_trains_beyond_fp16(overflowing, storage):
    stored = load(overflowing, storage)
    expected = adapted(reference(overflowing, stored))
    model = adapted(stored)
    keep_residual_in_fp32(model)
    outputs = watch(model)
    logits, grads = gradients(model)
    expected_logits, expected_grads = gradients(expected)

    assert {name for name, (dtype, _) in outputs.items() if dtype != torch.float32} == set()
    for layer in ("language_model.layers.2", "vision_tower.encoder.layers.1"):
        assert outputs[f"base_model.model.model.{layer}"][1] > FP16_MAX, layer
    assert logits.isfinite().all()
    assert difference(logits, expected_logits) < 1e-2
    assert grads.keys() == expected_grads.keys()
    assert {gradient.dtype for gradient in grads.values()} == {torch.float32}
    ours, theirs = (torch.cat([tensor.flatten() for tensor in all_.values()]) for all_ in (grads, expected_grads))
    assert difference(ours, theirs) < 1e-2
    for name, gradient in grads.items():
        assert difference(gradient, expected_grads[name]) < 2e-2, name


@pytest.mark.parametrize("storage", STORAGES)
def test_weights_keep_their_storage(overflowing, storage):
    model = load(overflowing, storage)
    names = list(model.state_dict())
    keep_residual_in_fp32(model)
    keep_residual_in_fp32(model)  # a second call changes nothing
    assert list(model.state_dict()) == names
    linear = model.model.language_model.layers[0].mlp.up_proj
    assert isinstance(linear, HalfSafeLinear)
    assert linear.weight.dtype == {"fp16": torch.float16, "8bit": torch.int8, "4bit": torch.uint8}[storage]
    table = model.get_input_embeddings()
    assert isinstance(table, HalfSafeEmbedding)
    assert table.weight.dtype == torch.float16
    assert model.get_output_embeddings().weight is table.weight
    others = [module for module in model.modules() if not isinstance(module, HalfSafeLinear | HalfSafeEmbedding)]
    rest = [tensor for module in others for tensor in [*module._parameters.values(), *module._buffers.values()]]
    assert {t.dtype for t in rest if t is not None and t.is_floating_point()} == {torch.float32}


def test_trainable_parameters_become_fp32(overflowing):
    model = load(overflowing, "fp16")
    trained = model.model.language_model.layers[1].mlp.up_proj
    trained.requires_grad_(True)
    keep_residual_in_fp32(model)
    assert type(trained) is nn.Linear
    assert trained.weight.dtype == torch.float32
    model(**batch(model)).logits.square().mean().backward()
    assert trained.weight.grad.isfinite().all()


def test_gradient_checkpointing_changes_nothing(overflowing):
    model = adapted(load(overflowing, "4bit"))
    keep_residual_in_fp32(model)
    model.train()
    logits, plain = gradients(model)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    again, checkpointed = gradients(model)
    assert torch.equal(logits, again)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)


def test_dora_over_stored_weights(overflowing):
    stored = load(overflowing, "fp16")
    expected, _ = gradients(adapted(reference(overflowing, stored), use_dora=True))
    model = adapted(stored, use_dora=True)
    keep_residual_in_fp32(model)
    logits, grads = gradients(model)
    assert difference(logits, expected) < 1e-2
    assert all(gradient is not None and gradient.isfinite().all() for gradient in grads.values())


def test_adapter_is_saved_and_text_is_generated(overflowing, tmp_path):
    model = adapted(load(overflowing, "fp16"))
    keep_residual_in_fp32(model)
    save_adapter(model, tmp_path, str(overflowing))
    base = Gemma3ForConditionalGeneration.from_pretrained(overflowing)
    again = PeftModel.from_pretrained(base, tmp_path)
    inputs = batch(base)
    with torch.no_grad():
        assert difference(model(**inputs).logits, again(**inputs).logits) < 1e-2
    tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert tokens.shape == (2, inputs["input_ids"].shape[1] + 3)


class TestProduct:
    """Tests of `half_safe_linear` against the product in fp64."""

    @staticmethod
    def weight(rows: int = 48, columns: int = 64, size: float = 0.05) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * size).half()

    @pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1.0, 65504.0, 1e30])
    def test_inputs_of_any_magnitude(self, magnitude):
        weight = self.weight()
        x = (torch.randn(2, 5, 64) * magnitude).requires_grad_()
        y = half_safe_linear(x, weight)
        exact = x.double() @ weight.double().T
        assert difference(y.double(), exact) < 2e-3
        upstream = torch.randn_like(y) * magnitude
        (gradient,) = torch.autograd.grad(y, x, upstream)
        assert difference(gradient.double(), upstream.double() @ weight.double()) < 2e-3

    def test_rows_are_scaled_separately(self):
        x = torch.tensor([[1e-20] * 64, [1e20] * 64, [0.0] * 64])
        y = half_safe_linear(x, self.weight())
        exact = x.double() @ self.weight().double().T
        for row in range(2):
            assert difference(y[row].double(), exact[row]) < 5e-3
        assert torch.equal(y[2], torch.zeros(48))

    def test_large_weights_cannot_overflow(self):
        weight = torch.full((8, 64), 6e4).half()
        x = torch.ones(3, 64, requires_grad=True)
        y = half_safe_linear(x, weight)
        torch.testing.assert_close(y, torch.full((3, 8), 64.0 * float(weight[0, 0])), rtol=2e-3, atol=0)
        y.sum().backward()
        assert x.grad.isfinite().all()

    def test_infinity_is_not_hidden(self):
        x = torch.ones(2, 64)
        x[0, 3] = torch.inf
        y = half_safe_linear(x, self.weight())
        assert not y[0].isfinite().any()
        assert y[1].isfinite().all()

    def test_the_bias_trains_and_no_activation_is_saved(self):
        saved: list[torch.Tensor] = []
        bias = torch.zeros(48, requires_grad=True)
        x = torch.randn(3, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
            y = half_safe_linear(x, self.weight(), bias)
        y.sum().backward()
        assert saved == []
        assert torch.equal(bias.grad, torch.full((48,), 3.0))

    def test_scales_are_powers_of_two(self):
        x = torch.tensor([[0.0, 0.0], [3.0, -5.0], [1e-42, 0.0], [2.0**-5, 0.0], [3e38, 1.0]])
        scale = row_scales(x)[:, 0]
        assert scale[0] == 1
        assert torch.all(torch.frexp(scale[:4])[0] == 0.5)
        assert scale.tolist()[1] == 8
        assert torch.all(x[:4].abs().amax(1) <= scale[:4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("storage", STORAGES)
def test_results_are_equal_on_a_gpu(overflowing, storage):
    model = adapted(load(overflowing, storage))
    keep_residual_in_fp32(model)
    inputs = batch(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        logits = model.cuda()(**{name: tensor.cuda() for name, tensor in inputs.items()}).logits
    assert difference(logits.cpu(), expected) < 1e-2
