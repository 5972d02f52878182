"""Tests of plans: bytes computed by hand, and memory measured by PyTorch's profiler on the same update."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mllm.config.hardware import Hardware, detect
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.planning.fake import OUTSIDE
from mllm.planning.plan import Plan, plan, prepare
from mllm.planning.processes import peak_of, update_peak_of
from mllm.planning.step import BATCH, GRADIENTS, OPTIMIZER, TRAINED, WEIGHTS, Update, by_kind
from mllm.tiny.checkpoints import write_tiny

CARD = Hardware("cuda", "a card", (8, 0), 2**34, 1, 2**34, 2)
CONFIG = """
model_args = dict(type="medgemma", model_name_or_path="{model}", lora_r=4, max_length=128, image_size=112,
                  image_token_len=16{model_args})
objectives = dict(next_token=dict(type="NextToken"))
data_args = dict(train=dict(type="DummyDataset", size=8, image_size=112){data_args})
training_args = dict(per_device_train_batch_size=4, optim="adamw_torch"{training_args})
"""
# The tiny language model: width 128, 3 layers, 4 heads of 32 with 2 for keys and values, MLP of 256.
LINEAR = {"q": (128, 128), "k": (128, 64), "v": (128, 64), "o": (128, 128), "gate": (128, 256), "up": (128, 256)}
LINEAR |= {"down": (256, 128)}
LORA = 3 * sum(4 * (width + out) for width, out in LINEAR.values())
"""Parameters of a LoRA of rank 4."""


def write(folder: Path, model: Path, **sections: str) -> str:
    keys = ("model_args", "data_args", "training_args")
    values = {key: f", {sections[key]}" if key in sections else "" for key in keys}
    (folder / "run.py").write_text(CONFIG.format(model=model, **values))
    return str(folder / "run.py")


@pytest.fixture(scope="module")
def lora(tmp_path_factory, tiny_medgemma) -> Plan:
    """The plan of a LoRA with weights in bf16."""
    return plan(write(tmp_path_factory.mktemp("plan"), tiny_medgemma, training_args="bf16=True"), [], CARD)


def test_adapter_gradients_and_optimizer(lora):
    components = lora.update.components
    assert lora.update.trained == LORA
    assert components[TRAINED] == 4 * LORA
    # Two moments of each number, and the step of each of the 2 x 7 x 3 tensors.
    assert components[OPTIMIZER] == 2 * 4 * LORA + 4 * 2 * 7 * 3
    assert components.get(GRADIENTS, 0) <= 4 * LORA


def test_frozen_weights_in_bf16(lora, tiny_medgemma):
    from safetensors import safe_open

    with safe_open(tiny_medgemma / "model.safetensors", "pt") as file:
        stored = {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    embedding = next(size for name, size in stored.items() if "embed_tokens" in name)
    components = lora.update.components
    assert components["embedding in bfloat16"] == 2 * embedding
    # The position embeddings of 64 x 64 patches are resampled to 8 x 8.
    positions = (64 * 64 - 8 * 8) * 64
    # The factor of the embedding is a buffer.
    assert components["weights in bfloat16"] == 2 * (sum(stored.values()) - embedding - positions + 1)


def test_a_micro_batch_has_the_greatest_length(lora):
    assert (lora.samples, lora.tokens, lora.pieces, lora.images, lora.rows) == (4, 4 * 128, 1, 1, 8)


def test_accumulated_gradients_are_complete(tmp_path, tiny_medgemma):
    """While a later micro-batch runs, the gradients of the earlier ones exist."""
    options = "bf16=True, gradient_accumulation_steps=3"
    accumulating = plan(write(tmp_path, tiny_medgemma, training_args=options), [], CARD)
    assert accumulating.pieces == 3
    assert accumulating.update.components[GRADIENTS] == 4 * LORA


def test_packed_weights(tmp_path, tiny_medgemma):
    """4 bits a number, a byte for 64 numbers, and 4 bytes for 256 of these; 8 bits a number, and 4 bytes a row."""
    packed = {}
    for bits in (4, 8):
        own = plan(
            write(tmp_path, tiny_medgemma, model_args=f"load_in_{bits}bit=True", training_args="fp16=True"), [], CARD
        )
        dtype = "uint8" if bits == 4 else "int8"
        packed[bits] = own.update.components[f"weights in {dtype}"]
    language = 3 * sum(width * out for width, out in LINEAR.values())
    rows = 3 * sum(out for _, out in LINEAR.values())
    assert packed[8] == language + 4 * rows
    # With 4 bits the vision tower is packed as well: 2 layers of width 64 and 128, with 4 projections and an MLP.
    numbers = [width * out for _ in range(3) for width, out in LINEAR.values()] + 2 * [64 * 64] * 4 + 2 * [64 * 128] * 2
    scales = [math.ceil(number / 64) for number in numbers]
    outer = sum(4 * math.ceil(scale / 256) for scale in scales)
    codes = len(numbers) * 4 * (16 + 256)
    assert packed[4] == sum(numbers) // 2 + sum(scales) + outer + codes


def test_a_model_that_counts_images_by_their_pixels(tmp_path):
    """SmolVLM leaves out images of zeros: a sample has the tokens of all of its parts."""
    model = write_tiny("smolvlm", tmp_path / "model")
    path = Path(write(tmp_path, model, data_args="vision_cache=False"))
    text = path.read_text().replace('"medgemma"', '"image-text"').replace(", image_size=112,\n", ",\n", 1)
    path.write_text(text.replace("image_token_len=16", "").replace("max_length=128", "max_length=2048"))
    own = plan(str(path), [], CARD)
    stored = plan(str(path), ["data_args.vision_cache=True"], CARD)
    assert own.images == stored.images == 1 and own.flops_per_sample > stored.flops_per_sample


def test_operations_of_a_step(tmp_path, tiny_medgemma):
    """Frozen weights cost 2 ND forward and 2 ND backward; the adapter, attention and the image are added."""
    own = plan(write(tmp_path, tiny_medgemma, training_args="bf16=True"), [], CARD)
    layers = 3 * sum(width * out for width, out in LINEAR.values())
    tokens = 128
    products = 4 * layers * tokens
    adapters = 6 * LORA * tokens
    attention = 3 * 7 * 2 * 4 * tokens * tokens * 32
    vocabulary = 4 * 128 * 1152 * tokens
    estimate = products + adapters + attention
    # The logits are computed at supervised positions only, and the features of the image are stored.
    assert estimate * 0.95 < own.flops_per_sample < (estimate + vocabulary) * 1.02


@pytest.fixture(scope="module")
def whole(lora) -> int:
    """Bytes of all parameters, which do not include the factor of the embedding, a buffer in bf16."""
    components = lora.update.components
    return components["weights in bfloat16"] - 2 + components["embedding in bfloat16"] + components[TRAINED]


def test_the_runtime_of_fsdp_is_planned(lora, whole, tmp_path, tiny_medgemma):
    """Of the three layers, two are gathered at a time, together with all that is outside of layers."""
    path = write(
        tmp_path, tiny_medgemma, training_args="bf16=True, fsdp=True, fsdp_config=dict(reshard_after_forward=True)"
    )
    own = plan(path, [], CARD)
    assert own.shards == "fsdp" and own.update.components == lora.update.components
    norms = 4 * 128 + 2 * 32
    layer = 2 * (sum(width * out for width, out in LINEAR.values()) + norms) + 4 * LORA // 3
    assert own.gathered == whole - layer
    assert lora.gathered == 0


def test_the_parameters_that_zero_3_keeps_are_planned(lora, whole, tmp_path, tiny_medgemma):
    """By default it gathers all of a model with less than 10^9 parameters."""
    zero = "bf16=True, deepspeed=dict(zero_optimization=dict(stage=3{more}))"
    limits = ", stage3_max_live_parameters=10000, stage3_max_reuse_distance=5000"
    gathered = []
    for more in ("", limits):
        path = write(tmp_path, tiny_medgemma, training_args=zero.format(more=more))
        own = plan(path, [], CARD)
        assert own.shards == "zero3"
        gathered.append(own.gathered)
    # All frozen numbers have 2 bytes and all trained ones 4.
    numbers = (whole - 4 * LORA) // 2 + LORA
    assert gathered[0] == whole
    assert gathered[1] == round(10000 * whole / numbers) + lora.update.components["embedding in bfloat16"]


def test_processes_share_what_their_engine_divides():
    components = {
        TRAINED: 400,
        OPTIMIZER: 800,
        GRADIENTS: 400,
        "weights in bfloat16": 1000,
        "embedding in bfloat16": 200,
    }
    update = Update(2800, components, 0, 100)
    config = read_config(str(Path(__file__).parents[2] / "config/training_configs/medgemma_cpu_demo.py"))
    base = Plan(config, update, 1, 1, 1, 0, None, 0, False, "")
    assert peak_of(base, 1) == 2800
    assert peak_of(base, 4) == 2800 + 400  # buckets of DDP
    assert peak_of(replace(base, shards="zero1"), 4) == 2800 - 600
    assert peak_of(replace(base, shards="zero2"), 4) == 2800 - 600 - 300
    for shards in ("zero3", "fsdp"):
        sharded = replace(base, shards=shards)
        assert update_peak_of(sharded, 4) == 2800 - 600 - 300 - 300 - 900
        assert peak_of(sharded, 4) == 2800 - 800 - 400, "all weights and the activations, before the first update"
        assert peak_of(sharded, 1) == 2800
        gathering = replace(sharded, gathered=1200)
        assert update_peak_of(gathering, 4) == 700 + 1200 == peak_of(gathering, 4), "more than before the first update"
        assert peak_of(gathering, 1) == 2800


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_is_that_of_a_real_update(tmp_path, tiny_medgemma, checkpointing):
    """PyTorch's profiler counts the bytes of its CPU allocator."""
    path = write(tmp_path, tiny_medgemma, training_args=f"gradient_checkpointing={checkpointing}, use_cpu=True")
    planned = plan(path, [], detect())
    config, hardware = apply_rules(read_config(path), detect())
    prepared = prepare(config, hardware, tmp_path / "run", None)
    trainer, learner = prepared.trainer, prepared.trainer.learner
    optimizer = trainer.create_optimizer()

    def step() -> None:
        batch = planned_batch(prepared)
        trainer.training_step(learner, batch, trainer._global_counts(batch, trainer.args.device))
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()  # the states of the optimizer exist from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    kinds = by_kind(planned.update.components)
    before = sum(kinds[kind] for kind in (WEIGHTS, TRAINED, OPTIMIZER, BATCH, OUTSIDE))
    assert planned.peak - before == pytest.approx(peak, rel=0.05)


def planned_batch(prepared):
    from mllm.structures import LogicalBatch

    return LogicalBatch([prepared.piece], prepared.piece.samples, 1, 1)
