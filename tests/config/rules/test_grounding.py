from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mllm.config.hardware import Hardware
from mllm.config.reading import read_config
from mllm.config.rules import apply_rules
from mllm.config.schema import RunConfig
from mllm.errors import ConfigError

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)
HEAD = "box=dict(type='BoxHead')"


@pytest.fixture
def run(write, bases):
    def apply(lines: str) -> RunConfig:
        return apply_rules(read_config(write(bases + lines + "\n")), CPU)[0]

    return apply


@pytest.fixture
def sentence(run):
    def refuse(lines: str) -> str:
        with pytest.raises(ConfigError) as excinfo:
            run(lines)
        return str(excinfo.value)

    return refuse


def shikra(rest: str, type: str = "shikra", name: str = "x/llava") -> str:
    return f"model_args = dict(type='{type}', model_name_or_path='{name}', {rest})"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_tower", "'x/clip'"),
        ("mm_vision_select_layer", "-1"),
        ("freeze_backbone", "True"),
        ("tune_mm_mlp_adapter", "True"),
        ("freeze_mm_mlp_adapter", "True"),
        ("pretrain_mm_mlp_adapter", "'x.bin'"),
    ],
)
def test_keys_of_shikra_are_refused_for_other_types(sentence, run, key, value):
    assert sentence(f"model_args = dict({key}={value})") == (
        f"run.py:2: model_args.{key} is only possible with type='shikra' or 'perceptionGPT', and the type is "
        "'medgemma': remove it"
    )
    run(shikra(f"{key}={value}"))


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (shikra("tune_mm_mlp_adapter=True, freeze_mm_mlp_adapter=True"), "exclude each other: set one of them to"),
        (shikra("freeze_backbone=True, freeze_mm_mlp_adapter=True"), "leave nothing to train"),
        (shikra("tune_mm_mlp_adapter=True", "perceptionGPT"), "heads and added tokens must be trained too"),
        (
            shikra("tune_mm_mlp_adapter=True, box_format=dict(type='location_tokens')"),
            "added tokens must be trained too",
        ),
        (
            shikra("freeze_backbone=True, adapter_path='x/lora'"),
            "freeze_backbone=True trains no LoRA, but adapter_path",
        ),
        (shikra("tune_mm_mlp_adapter=True, adapter_path='x/lora'"), "or tune_mm_mlp_adapter=False"),
        (shikra("freeze_mm_mlp_adapter=True, vision_tower='x/clip'"), "would freeze a new projector"),
    ],
)
def test_contradicting_freezing_options_are_refused(sentence, lines, part):
    text = sentence(lines)
    assert text.startswith("run.py:2: ") and part in text


@pytest.mark.parametrize(
    "lines",
    [
        shikra("freeze_backbone=True, lora_r=None"),
        shikra("freeze_backbone=True, freeze_mm_mlp_adapter=True", "perceptionGPT"),
        shikra("freeze_backbone=True, freeze_mm_mlp_adapter=True, box_format=dict(type='location_tokens')"),
        shikra("freeze_backbone=True, adapter_path='x/lora', merge_lora=True"),
    ],
)
def test_valid_freezing_options_are_accepted(run, lines):
    assert run(lines).model_args.freeze_backbone


def test_defaults_of_the_type_are_filled_in(run):
    args = run(shikra("lora_r=4", "perceptionGPT")).model_args
    assert set(args.heads) == {"box", "mask"} and args.pad_to_square and args.fuse_vision_layers
    assert run("").model_args.pad_to_square is False


@pytest.fixture
def checkpoint(tmp_path: Path):
    """A function that writes a checkpoint's config.json into the folder `here`."""

    def write_config(**values: object) -> None:
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "here" / "config.json").write_text(json.dumps(values))

    return write_config


@pytest.mark.parametrize(
    ("values", "rest", "part"),
    [
        ({"model_type": "llama"}, "", "is a language model without a vision tower: set model_args.vision_tower"),
        ({"model_type": "llava"}, "vision_tower='x/clip'", "is a LLaVA and has a vision tower: remove"),
        ({"model_type": "qwen2_vl"}, "", "is a qwen2_vl checkpoint: use type='image-text'"),
        ({"model_type": "shikra"}, "", "convert it with python mllm/pipeline/convert.py --model here --out FOLDER"),
        ({"model_type": "llava", "mm_vision_tower": "x"}, "", "in the layout of the original LLaVA or Shikra"),
        ({"model_type": "gemma3"}, "", "it is a Gemma 3 checkpoint; use type='medgemma'"),
    ],
)
def test_checkpoints_that_are_not_a_llava_are_refused(sentence, checkpoint, values, rest, part):
    checkpoint(**values)
    assert part in sentence(shikra(rest, name="here"))


@pytest.mark.parametrize(("family", "rest"), [("llava", ""), ("llama", "vision_tower='x/clip'")])
def test_a_llava_and_a_llama_with_a_clip_are_accepted(run, checkpoint, family, rest):
    checkpoint(model_type=family)
    run(shikra(rest, name="here"))


@pytest.mark.parametrize(("loss", "head"), [("BoxLoss", "box"), ("MaskLoss", "mask")])
def test_an_objective_without_its_head_is_refused(sentence, run, loss, head):
    objective, kind = f"objectives = dict(location=dict(type='{loss}'))", f"{head.title()}Head"
    assert sentence(objective) == (
        f"run.py:2: objectives.location ({loss}) needs model_args.heads = dict({head}=dict(type='{kind}'))"
    )
    run(objective + f"\nmodel_args = dict(heads=dict({head}=dict(type='{kind}')))")


def test_a_head_without_an_objective_gets_a_warning(run, caplog):
    with caplog.at_level(logging.WARNING, logger="mllm"):
        run(f"model_args = dict(heads=dict({HEAD}))")
        run(f"model_args = dict(heads=dict({HEAD}))\nobjectives = dict(b=dict(type='BoxLoss'))")
    assert caplog.messages == ["no objective trains the box head: add objectives = dict(box=dict(type='BoxLoss'))"]


def test_an_objective_without_targets_does_not_count_as_training_of_a_head(run, caplog):
    head = "model_args = dict(part='vision', heads=dict(measures=dict(type='RegressionHead')))\n"
    agreement = "consistency=dict(type='VolumeConsistency')"
    with caplog.at_level(logging.WARNING, logger="mllm.config.rules.grounding"):
        run(head + f"objectives = dict({agreement})")
        run(head + f"objectives = dict({agreement}, measures=dict(type='MeasureLoss'))")
    assert caplog.messages == [
        "no objective trains the measures head: add objectives = dict(measures=dict(type='MeasureLoss'))"
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("heads=dict(boxes=dict(type='BoxHead'))", "model_args.heads has no head named 'boxes': did you mean 'box'?"),
        ("heads=dict(box=dict(type='BoxHed'))", "unknown type 'BoxHed' in registry heads: did you mean 'BoxHead'?"),
        ("heads=dict(box=dict(type='BoxHead', hiden=3))", "unknown key 'hiden' in model_args.heads.box (BoxHead)"),
        ("heads=dict(box=dict(type='BoxHead', width=3))", "unknown key 'width' in model_args.heads.box (BoxHead)"),
        ("heads=dict(mask=dict(type='MaskHead', grid=3))", "unknown key 'grid' in model_args.heads.mask (MaskHead)"),
        ("box_format=dict(type='text')", "unknown type 'text' in registry box formats"),
        ("box_format=dict(precision=2)", "model_args.box_format must be a dict with a 'type'"),
        ("box_format=dict(type='normalized_text', bins=2)", "unknown key 'bins' in model_args.box_format"),
    ],
)
def test_heads_and_formats_are_checked_against_their_classes(write, bases, lines, expected):
    with pytest.raises(ConfigError) as excinfo:
        read_config(write(bases + f"model_args = dict({lines})\n"))
    assert str(excinfo.value).startswith("run.py:2: ") and expected in str(excinfo.value)
