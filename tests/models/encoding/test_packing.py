"""Packed samples have the same losses and gradients as single samples, in every family that allows packing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
)

from mllm.config.hardware import detect
from mllm.config.rules.packing import PACKED
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import LogicalCollator
from mllm.dataset.loading.sharing import RowCollator
from mllm.engine.learner import Learner
from mllm.engine.preflight import preflight
from mllm.errors import ConfigError
from mllm.models.backbone.hidden_states import states_of
from mllm.models.backbone.segment_attention import use_segment_attention
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.packing import LAYOUT, RowLayout, followers, packing
from mllm.models.encoding.sharing import SharedRow, shared_hidden_state
from mllm.objectives.text import NextToken
from mllm.protocols import Bundle
from mllm.structures import Batch, Context, Encoded, Sample, Turn
from mllm.tiny.checkpoints import write_tiny
from mllm.tiny.parts import TEXT, padded_rows, random_model

SIZES = {**TEXT, "sliding_window": 16}
"""Sliding windows (where a family has them) end inside a sample, and begin in the one before it."""
SOFTCAPPED = ("gemma2", "vaultgemma")
"""The families that compute attention in Python alone, for its cap."""
CASES = [(family, "eager" if family in SOFTCAPPED else "sdpa") for family in PACKED if family != "gemma3n"]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model of the family with the tokenizer of Gemma, with random parameters, also of its LoRA; in fp64."""
    family, attention = request.param
    folder = write_tiny("gemma3n", tmp_path_factory.mktemp("gemma3n") / "model", text={"sliding_window": 16})
    if family != "gemma3n_text":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = dict(bos_token_id=2, eos_token_id=1, pad_token_id=0, vocab_size=padded_rows(len(tokenizer)), head_dim=32)
        sizes = {**SIZES, "use_sliding_window": True, "max_window_layers": 1} if "qwen" in family else SIZES
        config = AutoConfig.for_model(family, **sizes, **ids)
        folder = tmp_path_factory.mktemp(family) / "model"
        random_model(type(AutoModelForCausalLM.from_config(config)), config, seed=0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    args = ModelArgs("causal-lm", str(folder), lora_r=4, max_length=256, attn_implementation=attention)
    loaded = load_pretrained(args, detect())
    torch.manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    loaded.model.double()
    return loaded


@contextmanager
def segments(bundle: Bundle) -> Iterator[None]:
    """Let the model attend inside segments in the block, and by the attention of transformers after it."""
    config = bundle.model.pretrained.config.get_text_config(decoder=True)
    before = config._attn_implementation
    use_segment_attention(bundle.model.pretrained)
    yield
    config._attn_implementation = before


WORDS = ["lung", "heart", "The liver is large.", "no", "left kidney", "5 mm"]


def samples(encoder) -> list[Encoded]:
    """Return six conversations of 20 to 80 tokens, the longest first; one has two answers."""
    turns = [
        [Turn("user", " ".join(WORDS[: 1 + i % 6]) * (1 + i % 3)), Turn("assistant", " ".join(WORDS[i % 5 :]))]
        for i in range(6)
    ]
    turns[4] += [Turn("user", "Why?"), Turn("assistant", "Because.")]
    return sorted((encoder.encode(Sample(conversation)) for conversation in turns), key=len, reverse=True)


def piece_of(bundle: Bundle, order: list[int]) -> Batch:
    """Return a piece whose row has the samples in this order."""
    encoded, alone = samples(bundle.encoder), list(range(len(order)))
    return packing(bundle.encoder.pad)([encoded[i] for i in order], alone, [0] * len(order))


def losses(bundle: Bundle, piece: Batch) -> torch.Tensor:
    return NextToken().total(Context(piece.targets, bundle.model(**piece.student)))


def gradients(bundle: Bundle, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trained = {name: parameter for name, parameter in bundle.model.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def test_packing_changes_no_loss_and_no_gradient(bundle: Bundle):
    encoded = samples(bundle.encoder)
    order = [0, 5, 3, 1, 2, 4]
    piece = piece_of(bundle, order)
    # The attention of transformers computes single samples.
    alone_B = torch.cat([losses(bundle, bundle.encoder.pad([encoded[i]])) for i in order])
    with segments(bundle):
        total_B = losses(bundle, piece)
    torch.testing.assert_close(total_B, alone_B, rtol=1e-6, atol=1e-9)  # the head sums in fp32
    assert NextToken().count(piece.targets).tolist() == [
        int(NextToken().count(bundle.encoder.pad([encoded[i]]).targets)) for i in order
    ]
    # Each sample has another weight, so that misplaced gradients cannot cancel.
    weights = torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    expected = gradients(bundle, (weights * alone_B).sum())
    for name, gradient in gradients(bundle, (weights * total_B).sum()).items():
        # The head computes in fp32, and sums that cancel within a tensor keep that error.
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6 * largest, msg=name)


def test_padded_samples_have_the_losses_of_the_attention_of_transformers(bundle: Bundle):
    """As in a generation after a training with packing."""
    encoded = samples(bundle.encoder)
    with torch.no_grad():
        # Alone, because the attention of transformers with a cap is NaN at padding in fp64.
        expected = torch.cat([losses(bundle, bundle.encoder.pad([item])) for item in encoded])
        with segments(bundle):
            torch.testing.assert_close(losses(bundle, bundle.encoder.pad(encoded)), expected, rtol=1e-6, atol=1e-9)


def test_samples_of_a_row_do_not_attend_to_each_other(bundle: Bundle):
    """Other words at the end of a sample do not change the losses of other samples in its row."""
    piece = piece_of(bundle, [0, 5, 3])
    with torch.no_grad(), segments(bundle):
        before = losses(bundle, piece)
        for changed in range(3):
            ids = piece.student["input_ids"].clone()
            end = int(piece.student["attention_mask"][changed].sum())
            ids[changed, end - 6 : end] += 1
            after = losses(bundle, Batch({**piece.student, "input_ids": ids}, piece.targets))
            assert [bool(same) for same in after == before] == [i != changed for i in range(3)]


def test_gemma3n_with_its_towers_packs_text_too():
    """As with `google/gemma-3n-E4B-it`, which has towers; here the vision tower is small."""
    pytest.importorskip("timm")
    text = dict(TEXT, num_hidden_layers=4, head_dim=32, vocab_size=1152, vocab_size_per_layer_input=1152)
    text |= dict(hidden_size_per_layer_input=16, layer_types=["sliding_attention", "full_attention"] * 2, laurel_rank=8)
    text |= dict(sliding_window=16, num_kv_shared_layers=2, activation_sparsity_pattern=[0.95, 0.0, 0.0, 0.0])
    others = dict(vocab_size=64, vocab_offset=1024)
    vision = dict(others, architecture="resnet10t", hidden_size=512)
    audio = dict(others, hidden_size=64, conf_num_hidden_layers=1, conf_num_attention_heads=2)
    config = Gemma3nConfig(text_config=text, vision_config=vision, audio_config=audio)
    model = random_model(Gemma3nForConditionalGeneration, config, seed=0).double()
    lengths = torch.tensor([30, 20, 25])
    mask = torch.arange(30)[None, :] < lengths[:, None]
    ids = torch.randint(10, 1000, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    with torch.no_grad():
        alone = states_of(model, inputs)
        use_segment_attention(model)
        row = SharedRow.of(inputs["attention_mask"], RowLayout((0, 1, 2), (0, 0, 0), (30, 20, 25), ((), (), ())))
        packed = shared_hidden_state(model, inputs, row)
        leaking = model.base_model(input_ids=ids[mask][None]).last_hidden_state[0]
    torch.testing.assert_close(packed[mask], alone[mask], rtol=0, atol=1e-9)
    assert (leaking - alone[mask])[30:].abs().max() > 0.1


def test_followers_are_the_samples_after_another_one_in_a_row():
    student = {"input_ids": torch.zeros(3, 2), LAYOUT: None}
    assert followers(student).tolist() == [False, True, True]
    assert not followers({"input_ids": torch.zeros(4, 2)}).any()


def test_the_preflight_refuses_a_family_that_leaks(tmp_path: Path):
    folder = write_tiny("gemma3n", tmp_path / "model")
    bundle = load_pretrained(ModelArgs("causal-lm", str(folder), lora_r=4), detect())
    learner, accelerator = Learner(bundle.model, {"next_token": NextToken()}), Accelerator(cpu=True)
    bundle.model.share_tokens(image_blocks=False)
    batch = RowCollator(packing(bundle.encoder.pad), samples_per_piece=3)(samples(bundle.encoder))
    preflight(learner, batch, accelerator)

    def without_positions(module, arguments, options):
        """Remove what tells the attention of transformers that a row has several samples."""
        return arguments, {name: value for name, value in options.items() if name != "position_ids"}

    bundle.model.pretrained.config.get_text_config(decoder=True)._attn_implementation = "sdpa"
    bundle.model.pretrained.base_model.register_forward_pre_hook(without_positions, with_kwargs=True)
    with pytest.raises(ConfigError, match="attends to other samples of a packed row; set data_args.packing=False"):
        preflight(learner, batch, accelerator)
    preflight(learner, LogicalCollator(bundle.encoder.pad)(samples(bundle.encoder)), accelerator)
