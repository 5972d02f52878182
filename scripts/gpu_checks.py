"""Checks of `check_gpu.py`. Each returns a row of its table, or raises an error that becomes one."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from time import monotonic
from typing import Any

from gpu_runs import Machine, Row, Run, SkippedError, run
from gpu_tiers import STEPS, TIERS, tier

FP32, BF16, FP16, INT8, NF4 = 1e-4, 2e-2, 1e-2, 3e-2, 5e-2
"""Largest relative differences between the losses of a run and those of the CPU in fp32."""
QUANTIZED = {"4-bit": 1e-2, "8-bit": 2e-2}
"""Largest relative errors of a product with quantized weights, compared with the same weights in fp32."""


def card(machine: Machine) -> Row:
    """Return what the device supports, and its measured rates of matrix products."""
    import torch

    if not machine.is_gpu:
        rate = product_rate("cpu", torch.float32)
        return Row("card", "passed", f"CPU, {rate / 1e9:.0f} * 10^9 operations/s in fp32", {"fp32": rate})
    properties = torch.cuda.get_device_properties(0)
    figures: dict[str, Any] = {"memory": properties.total_memory, "fp32": product_rate("cuda", torch.float32)}
    dtypes = {"fp16": torch.float16} | ({"bf16": torch.bfloat16} if machine.capability >= (8, 0) else {})
    figures |= {name: product_rate("cuda", dtype) for name, dtype in dtypes.items()}
    rates = ", ".join(f"{name} {figures[name] / 1e12:.1f}" for name in ("fp32", *dtypes))
    supported = "bf16 and tf32" if machine.capability >= (8, 0) else "neither bf16 nor tf32"
    text = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, compute capability "
    text += ".".join(map(str, machine.capability)) + f", {supported}; measured 10^12 operations/s: {rates}"
    return Row("card", "passed", text, figures)


def product_rate(device: str, dtype: Any) -> float:
    """Return the operations a second of a product of square matrices: the fastest of five."""
    import torch

    size = 4096 if device == "cuda" else 512
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(6):  # the first one chooses a kernel
        start = monotonic()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(monotonic() - start)
    return 2 * size**3 / max(min(times[1:]), 1e-9)


def quantized_products(machine: Machine) -> Row:
    """Compare products with 4-bit and 8-bit weights, and their gradients, with the same weights in fp32."""
    import bitsandbytes
    import torch

    errors = {}
    for name in QUANTIZED:
        generator = torch.Generator().manual_seed(0)
        weight, inputs = torch.randn(256, 512, generator=generator) / 16, torch.randn(64, 512, generator=generator)
        if name == "4-bit":
            layer = bitsandbytes.nn.Linear4bit(512, 256, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            layer.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
            layer = layer.to(machine.device)
            stored = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().cpu()
        else:
            layer = bitsandbytes.nn.Linear8bitLt(512, 256, bias=False, has_fp16_weights=False, threshold=6.0)
            layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
            layer, stored = layer.to(machine.device), weight
        dtype = torch.float32 if name == "4-bit" else torch.float16
        x = inputs.to(machine.device, dtype).requires_grad_()
        output = layer(x)
        output.float().square().sum().backward()
        assert x.grad is not None
        expected = inputs @ stored.T
        gradient = 2 * expected @ stored
        found = ((output.detach(), expected), (x.grad, gradient))
        errors[name] = max(float((a.float().cpu() - b).norm() / b.norm()) for a, b in found)
    text = ", ".join(f"{name}: relative error {error:.1e}" for name, error in errors.items())
    bad = [name for name, error in errors.items() if not error <= QUANTIZED[name]]
    return Row("quantized products", "failed" if bad else "passed", text, errors)


def reference(machine: Machine) -> Run:
    """Return the run on the CPU in fp32."""
    return run(machine, "cpu", "training_args.use_cpu=True")


def plain(machine: Machine) -> Run:
    """Return the run on the device in fp32."""
    return run(machine, "fp32") if machine.is_gpu else reference(machine)


def compared(name: str, found: Run, expected: Run, allowed: float) -> Row:
    """Return the row of a run whose losses may differ from others by a relative difference."""
    if len(found.losses) != len(expected.losses) or not all(map(math.isfinite, found.losses)):
        return Row(name, "failed", f"the losses are {found.losses}, and those of the reference {expected.losses}")
    pairs = zip(found.losses, expected.losses, strict=True)
    difference = max(abs(a - b) / abs(b) for a, b in pairs)
    text = f"largest relative difference of {len(found.losses)} losses {difference:.1e} (limit {allowed:g})"
    return Row(name, "passed" if difference <= allowed else "failed", text, {"difference": difference})


def fp32(machine: Machine) -> Row:
    """Compare the device with the CPU, both in fp32."""
    if not machine.is_gpu:
        raise SkippedError("there is no GPU to compare with the CPU")
    return compared("fp32", plain(machine), reference(machine), FP32)


def generation(machine: Machine) -> Row:
    """Compare the answers of the trained model with those of the CPU in fp32."""
    if not machine.is_gpu:
        raise SkippedError("there is no GPU to compare with the CPU")
    found, expected = plain(machine).answers, reference(machine).answers
    equal = sum(a == b for a, b in zip(found, expected, strict=True))
    text = f"{equal} of {len(expected)} answers are those of the CPU in fp32"
    return Row("generation", "passed" if equal == len(expected) and expected else "failed", text, {"equal": equal})


def bf16(machine: Machine) -> Row:
    """Compare a run in bf16 with the CPU in fp32."""
    if machine.is_gpu and machine.capability < (8, 0):
        raise SkippedError("needs compute capability 8.0")
    return compared("bf16", _half(machine, "bf16"), reference(machine), BF16)


def fp16(machine: Machine) -> Row:
    """Compare a run over fp16 weights with an fp32 residual stream with the CPU in fp32."""
    return compared("fp16-safe", _half(machine, "fp16"), reference(machine), FP16)


def _half(machine: Machine, name: str) -> Run:
    forced = [] if machine.is_gpu else [f"hardware.{name}=True"]
    return run(machine, name, f"training_args.{name}=True", *forced)


def four_bits(machine: Machine) -> Row:
    """Compare a run over 4-bit weights with the CPU in fp32."""
    return compared("4-bit", run(machine, "nf4", "model_args.load_in_4bit=True"), reference(machine), NF4)


def eight_bits(machine: Machine) -> Row:
    """Compare a run over 8-bit weights with the CPU in fp32."""
    return compared("8-bit", run(machine, "int8", "model_args.load_in_8bit=True"), reference(machine), INT8)


def checkpointing(machine: Machine) -> Row:
    """Compare runs with recomputed activations, kept on the device and on the host, with one without."""
    key = "training_args.gradient_checkpointing"
    kept = run(machine, "checkpointing", f"{key}=True", "data_args.test=None")
    moved = run(machine, "offload", f"{key}=True", f"{key}_kwargs.offload=True", "data_args.test=None")
    rows = [compared("checkpointing", other, plain(machine), FP32) for other in (kept, moved)]
    worst = max(rows, key=lambda row: (row.result == "failed", row.figures.get("difference", 0.0)))
    return Row(worst.check, worst.result, f"with and without offload: {worst.text}", worst.figures)


def resume(machine: Machine) -> Row:
    """Compare a run that was continued after two updates with an uninterrupted one."""
    shutil.rmtree(machine.folder / "resumed", ignore_errors=True)
    run(machine, "resumed", "training_args.max_steps=2", "data_args.test=None")
    continued = run(machine, "resumed", "data_args.test=None", options=("--tiny", "--resume"))
    return compared("resume", continued, plain(machine), FP32)


def flex(machine: Machine) -> Row:
    """Compare rows of samples by FlexAttention with the same rows by SDPA, both in fp32."""
    if not machine.is_gpu:
        raise SkippedError("FlexAttention has no backward pass on a CPU")
    rows = ("data_args.packing=True", "data_args.test=None", "model_args.attn_implementation=")
    found, expected = (run(machine, name, *rows[:2], rows[2] + name) for name in ("flex_attention", "sdpa"))
    return compared("flex attention", found, expected, FP32)


def liger(machine: Machine) -> Row:
    """Compare a run with kernels of Liger with one without, both in fp32."""
    if not machine.is_gpu or find_spec("liger_kernel") is None:
        raise SkippedError("the kernels of Liger need a GPU, and its package: pip install -e .[liger]")
    return compared("liger", run(machine, "liger", "training_args.use_liger_kernel=True"), plain(machine), FP32)


CHECKS: dict[str, Callable[[Machine], Row]] = {
    "card": card,
    "quantized products": quantized_products,
    "fp32": fp32,
    "generation": generation,
    "bf16": bf16,
    "fp16-safe": fp16,
    "4-bit": four_bits,
    "8-bit": eight_bits,
    "checkpointing": checkpointing,
    "resume": resume,
    "flex attention": flex,
    "liger": liger,
    **{f"{STEPS} steps of {config}": tier(name) for name, config in TIERS.items()},
}
"""Checks in their order."""
