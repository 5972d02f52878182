"""Checks of `check_gpu.py`. Each returns a row of its table, or raises an error that becomes one."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

from mllm.errors import UserError, one_line

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = f"""
_base_ = ["{CHECKOUT}/config/_base_/models/medgemma.py", "{CHECKOUT}/config/_base_/datasets/dummy.py",
          "{CHECKOUT}/config/_base_/runtime/finetune.py"]
model_args = dict(lora_r=4, lora_target="all", image_size=112, image_token_len=16, max_length=256, lora_dropout=0.0)
data_args = dict(train=dict(size=8, image_size=112), validation=None, test=dict(size=2, image_size=112),
                 gen_kwargs=dict(max_new_tokens=8), vision_cache=False)
training_args = dict(max_steps=4, per_device_train_batch_size=2, logging_steps=1, save_strategy="steps", save_steps=2,
                     learning_rate=1e-3, lr_scheduler_type="constant", warmup_steps=0, dataloader_num_workers=0,
                     report_to=[], tf32=False)
"""
"""Config of the runs whose losses are compared."""
TIERS = {"4gb": "medgemma_4gb_test", "t4": "medgemma_16gb_medical", "ampere": "medgemma_16gb_ampere"}
"""Configs of three sizes of cards."""
STEPS = 3
"""Updates of a run of a tier."""
FP32, BF16, FP16, INT8, NF4 = 1e-4, 2e-2, 1e-2, 3e-2, 5e-2
"""Largest relative differences between the losses of a run and those of the CPU in fp32."""
QUANTIZED = {"4-bit": 1e-2, "8-bit": 2e-2}
"""Largest relative errors of a product with quantized weights, compared with the same weights in fp32."""
SHARD = 4 * 10**9


@dataclass
class Row:
    """Row of the table."""

    check: str
    result: str
    """passed, failed or skipped."""
    text: str
    """Result in words."""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """The device that is checked, and the folder for runs and weights."""

    device: str
    """cuda, or cpu."""
    folder: Path
    capability: tuple[int, int] = (0, 0)

    @property
    def is_gpu(self) -> bool:
        """Return True on a GPU."""
        return self.device == "cuda"


class SkippedError(Exception):
    """Reason why a check does not apply to this machine."""


def guarded(name: str, check: Callable[[Machine], Row], machine: Machine) -> Row:
    """Return the row of a check. An error is a failed row with one sentence."""
    try:
        return check(machine)
    except SkippedError as reason:
        return Row(name, "skipped", str(reason))
    except UserError as error:
        return Row(name, "failed", one_line(str(error)))
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        return Row(name, "failed", f"{type(error).__name__}: {one_line(str(error))[:300]}")


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


@dataclass(frozen=True)
class Run:
    """Results of a training run."""

    folder: Path
    rows: list[dict[str, float]]

    @property
    def losses(self) -> list[float]:
        """Return the loss of each update."""
        return [row["loss"] for row in self.rows if "loss" in row]

    @property
    def answers(self) -> list[str]:
        """Return the generated answers."""
        lines = (self.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["prediction"] for line in lines]


def run(machine: Machine, name: str, *overrides: str, config: str = "", options: Sequence[str] = ("--tiny",)) -> Run:
    """Train a config, TINY by default, in the folder `name`, and return its results; a finished run is not repeated."""
    from mllm.pipeline.finetune import main

    folder = machine.folder / name
    if not (folder / "facts.json").is_file() or "--resume" in options:
        file = machine.folder / "tiny.py"
        file.write_text(TINY, encoding="utf-8")
        current = Path.cwd()
        os.chdir(machine.folder)  # tiny checkpoints and caches are written to the current folder
        try:
            settings = [f"training_args.output_dir={folder}", *overrides]
            code = main([config or str(file), "--no-plan", *options, "--cfg-options", *settings])
        finally:
            os.chdir(current)
        assert code == 0, f"the run ended with exit code {code}"
    return Run(folder, json.loads((folder / "training_log.json").read_text(encoding="utf-8"))["rows"])


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


def tier(name: str) -> Callable[[Machine], Row]:
    """Return the check of three steps of the config of a tier: peak memory, its plan, tokens per second and MFU."""

    def check(machine: Machine) -> Row:
        from mllm.config.hardware import detect

        path = str(CHECKOUT / f"config/training_configs/{TIERS[name]}.py")
        weights = machine.folder / "weights"
        overrides = [f"training_args.max_steps={STEPS}", "training_args.logging_steps=1", "training_args.report_to=[]"]
        overrides += ["training_args.save_strategy=no", "data_args.validation=None", "data_args.test=None"]
        options = ("--tiny",)
        if machine.is_gpu:
            refuse_unsuitable(TIERS[name], machine)
            write_checkpoint(path, weights)
            overrides.append(f"model_args.model_name_or_path={weights}")
            options = ()
        plan = planned(path, overrides, detect(), tiny=not machine.is_gpu)
        if machine.is_gpu and plan["peak"] > plan["usable"]:
            needs, has = plan["peak"] / 1e9, plan["usable"] / 1e9
            raise SkippedError(f"needs {needs:.1f} GB by its plan, and the card has {has:.1f} GB for tensors")
        result = run(machine, name, *overrides, config=path, options=options)
        return tier_row(name, result, plan)

    return check


def refuse_unsuitable(config: str, machine: Machine) -> None:
    """Raise `SkippedError` for a config that the card cannot compute."""
    if config.endswith("ampere") and machine.capability < (8, 0):
        raise SkippedError("bf16 needs compute capability 8.0")


def tier_row(name: str, result: Run, plan: dict[str, float]) -> Row:
    """Return the row of the run of a tier.

    The speed is that of the updates after the first. MFU is the share of the published rate, or else of the measured
    rate, that the operations of the plan reach; recomputed ones count.
    """
    first, last = result.rows[0], result.rows[-1]
    tokens = [row["tokens_per_second"] * row["seconds"] / (1 - row["padding_share"]) for row in (first, last)]
    speed = (tokens[1] - tokens[0]) / (last["seconds"] - first["seconds"])
    peak = max(row["peak_memory_gb"] for row in result.rows) * 1e9
    figures = {"peak": peak, "planned": plan["peak"], "tokens_per_second": speed, "losses": result.losses}
    text = f"peak {peak / 1e9:.2f} GB, plan {plan['peak'] / 1e9:.2f} GB, {speed:.0f} tokens/s"
    if plan["rate"]:
        figures["mfu"] = speed * plan["flops_per_token"] / plan["rate"]
        text += f", MFU {figures['mfu']:.1%} of {plan['rate'] / 1e12:.1f} * 10^12 operations/s"
    is_finite = len(result.losses) == STEPS and all(map(math.isfinite, result.losses))
    return Row(f"{STEPS} steps of {TIERS[name]}", "passed" if is_finite else "failed", text, figures)


def planned(path: str, overrides: Sequence[str], hardware: Any, tiny: bool) -> dict[str, float]:
    """Return peak memory and operations of a config by `mllm plan`, and the memory and the rate of the card."""
    from mllm.errors import ConfigError
    from mllm.planning.answer import ANY
    from mllm.planning.cards import find_card, usable_memory
    from mllm.planning.plan import plan

    result = plan(path, overrides, hardware if hardware.device == "cuda" else ANY, tiny=tiny)
    try:
        rate = find_card(hardware.name).half * 1e12
    except ConfigError:  # not in the table
        rate = 0.0
    tokens = max(1, result.tokens)
    usable = usable_memory(hardware.memory)
    return {"peak": result.peak, "usable": usable, "rate": rate, "flops_per_token": result.update.flops / tokens}


def write_checkpoint(path: str, folder: Path) -> None:
    """Write the checkpoint of a config with its published shapes and random weights, once.

    Raises:
        SkippedError: The disk has no room for it.
    """
    import torch
    from random_weights import write_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    from mllm.config.reading import read_config
    from mllm.planning.checkpoint import without_weights

    if folder.is_dir():
        return
    source = Path(without_weights(read_config(path).model_args, folder.with_name("parts")).model_name_or_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(source), dtype=torch.bfloat16)
    size, free = 2 * sum(parameter.numel() for parameter in model.parameters()), shutil.disk_usage(source).free
    if size * 1.1 > free:
        raise SkippedError(f"random weights need {size / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free")
    (source / "model.safetensors").unlink()
    write_weights(source, model, SHARD)
    source.rename(folder)


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


def as_dict(row: Row) -> dict[str, Any]:
    """Return a row for a JSON file."""
    return asdict(row)
