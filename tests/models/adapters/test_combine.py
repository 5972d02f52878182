"""Weighted combination of adapters, against results computed by hand for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from mllm.errors import ConfigError
from mllm.models.adapters.combine import COMBINATIONS, check_combination, combined
from mllm.models.adapters.files import SavedAdapter, read_adapter
from mllm.tiny.checkpoints import write_tiny

Q, V = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.0.self_attn.v_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("gemma3n", tmp_path_factory.mktemp("base") / "gemma3n")


def _model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base)


def _adapter(base: Path, folder: Path, seed: int, **options: Any) -> SavedAdapter:
    torch.manual_seed(seed)
    model = get_peft_model(_model(base), LoraConfig(init_lora_weights=False, **options))
    model.save_pretrained(str(folder))
    return read_adapter(folder)


def _parts(saved: SavedAdapter, module: str) -> tuple[Tensor, Tensor]:
    return saved.tensors[f"{module}.lora_A.weight"], saved.tensors[f"{module}.lora_B.weight"]


def _change(saved: SavedAdapter, module: str) -> Tensor:
    """Return the change of a weight by an adapter without rsLoRA and patterns."""
    a, b = _parts(saved, module)
    return saved.config.lora_alpha / saved.config.r * b @ a


def test_cat_is_the_weighted_sum(base: Path, tmp_path: Path) -> None:
    """The adapters differ in rank, rsLoRA, patterns and target modules."""
    first = _adapter(base, tmp_path / "a", 1, r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "o_proj"])
    second = _adapter(
        *(base, tmp_path / "b", 2),
        r=2,
        lora_alpha=5,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 3},
        alpha_pattern={"v_proj": 9},
    )
    result = combined(_model(base), [first, second], [0.7, -0.3])
    assert (result.config.r, result.config.lora_alpha, result.config.use_rslora) == (7, 7, False)
    (a, b), (c, d), (e, f) = _parts(first, Q), _parts(second, Q), _parts(second, V)
    torch.testing.assert_close(_change(result, Q), 0.7 * 6 / 4**0.5 * b @ a - 0.3 * 5 / 2 * d @ c, rtol=0, atol=1e-6)
    torch.testing.assert_close(_change(result, V), -0.3 * 9 / 3 * f @ e, rtol=0, atol=1e-6)
    modules = {key.partition(".lora_")[0] for key in result.tensors}
    assert modules == {key.partition(".lora_")[0] for saved in (first, second) for key in saved.tensors}


def _two(base: Path, tmp_path: Path) -> tuple[SavedAdapter, SavedAdapter]:
    options: dict[str, Any] = dict(r=4, target_modules=["q_proj"])
    return (
        _adapter(base, tmp_path / "a", 1, lora_alpha=8, **options),
        _adapter(base, tmp_path / "b", 2, lora_alpha=2, **options),
    )


def _scaled(saved: SavedAdapter, weight: float) -> tuple[Tensor, Tensor]:
    """Return A and B as PEFT combines them: each times the root of the weight, and B times the scaling."""
    a, b = _parts(saved, Q)
    return weight**0.5 * a, weight**0.5 * saved.config.lora_alpha / saved.config.r * b


def test_linear_adds_the_factors(base: Path, tmp_path: Path) -> None:
    first, second = _two(base, tmp_path)
    result = combined(_model(base), [first, second], [0.5, 2.0], combination="linear")
    assert result.config.r == 4
    (a, b), (c, d) = _scaled(first, 0.5), _scaled(second, 2.0)
    torch.testing.assert_close(_change(result, Q), (b + d) @ (a + c), rtol=0, atol=1e-6)


def _trimmed(tensor: Tensor, density: float) -> Tensor:
    """Return a tensor with only its largest values."""
    least = tensor.abs().flatten().sort(descending=True).values[int(density * tensor.numel()) - 1]
    return torch.where(tensor.abs() >= least, tensor, 0.0)


def _elected(first: Tensor, second: Tensor) -> Tensor:
    """Return the TIES combination (arXiv:2306.01708): the mean of the values that have the sign of the sum."""
    sign = torch.where(first + second >= 0, 1.0, -1.0)
    agree = torch.stack([first * sign > 0, second * sign > 0])
    return (torch.stack([first, second]) * agree).sum(0) / agree.sum(0).clamp_min(1)


def test_ties_elects_signs(base: Path, tmp_path: Path) -> None:
    first, second = _two(base, tmp_path)
    result = combined(_model(base), [first, second], [1.0, 1.0], combination="ties", density=0.5)
    (a, b), (c, d) = _scaled(first, 1.0), _scaled(second, 1.0)
    expected = [_elected(_trimmed(x, 0.5), _trimmed(y, 0.5)) for x, y in ((a, c), (b, d))]
    torch.testing.assert_close(_change(result, Q), expected[1] @ expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("combination", ["dare_linear", "dare_ties"])
def test_dare_drops_at_random_with_a_fixed_seed(base: Path, tmp_path: Path, combination: str) -> None:
    first, second = _two(base, tmp_path)
    results = [
        combined(_model(base), [first, second], [1.0, 1.0], combination=combination, density=0.5) for _ in range(2)
    ]
    assert all(torch.equal(tensor, results[1].tensors[key]) for key, tensor in results[0].tensors.items())
    actual, (a, _), (c, _) = _parts(results[0], Q)[0], _scaled(first, 1.0), _scaled(second, 1.0)
    # Density 0.5 keeps every other number and doubles it (arXiv:2311.03099).
    both = 2 * (a + c) if combination == "dare_linear" else a + c  # their sum, or the mean of those that agree
    candidates = torch.stack([torch.zeros_like(a), 2 * a, 2 * c, both])
    nearest = (candidates - actual).abs().min(dim=0)
    assert nearest.values.max() < 1e-5
    assert 0.15 < (nearest.indices == 0).float().mean() < 0.35, "a quarter loses both"


def test_one_adapter_and_its_weight(base: Path, tmp_path: Path) -> None:
    saved = _adapter(base, tmp_path / "a", 1, r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj"])
    a, b = _parts(saved, Q)
    result = combined(_model(base), [saved], [0.5])
    torch.testing.assert_close(_change(result, Q), 0.5 * 6 / 4**0.5 * b @ a, rtol=0, atol=1e-6)


def test_adapters_that_cannot_be_combined(base: Path, tmp_path: Path) -> None:
    lora = _adapter(base, tmp_path / "a", 1, r=4, target_modules=["q_proj"])
    small = _adapter(base, tmp_path / "b", 2, r=2, target_modules=["q_proj"])
    dora = _adapter(base, tmp_path / "c", 3, r=4, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ConfigError, match="DoRA"):
        combined(_model(base), [lora, dora], [1, 1])
    with pytest.raises(ConfigError, match="adapters of one rank.*has 4.*has 2.*use --combination cat"):
        combined(_model(base), [lora, small], [1, 1], combination="ties", density=0.5)


@pytest.mark.parametrize(
    ("weights", "combination", "density", "sentence"),
    [
        ([1.0], "cat", None, "--weights has 1 numbers for 2 adapters"),
        ([1.0, 0.0], "cat", None, "not 0"),
        ([1.0, float("nan")], "cat", None, "finite"),
        (None, "ties", None, "needs --density"),
        (None, "dare_ties", 1.5, "needs --density"),
        (None, "cat", 0.5, "--density is for"),
    ],
)
def test_contradicting_options_are_refused(
    weights: Any, combination: str, density: float | None, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_combination(2, weights, combination, density)


def test_valid_options_are_accepted() -> None:
    for combination in COMBINATIONS:
        check_combination(2, [0.5, -1], combination, None if combination in ("cat", "linear") else 0.3)
