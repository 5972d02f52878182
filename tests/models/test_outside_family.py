"""A model family from one file outside of the repository: checked, trained, shown, used for prediction and merged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mllm.config.reading import read_config
from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.pipeline import finetune, merge, predict, show
from mllm.pipeline.command import USER_ERROR, run_command
from mllm.run.prepare import prepare_args

CHECKOUT = Path(__file__).resolve().parents[2]
FAMILY = '''
"""Idefics3 with a LoRA on its connector and images of a chosen size."""

from dataclasses import dataclass, field

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.family import FAMILIES, Family, LazyFunction

LANGUAGE = r".*text_model\\.layers\\.\\d+\\.(self_attn\\.(q|k|v|o)_proj|mlp\\.(gate|up|down)_proj)"
TEMPLATE = """{% for turn in messages %}{{ turn['role'] }}: {% if turn['content'] is string %}{{ turn['content'] }}
{%- else %}{% for part in turn['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}
{%- endif %}<end_of_utterance>
{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"""


@dataclass(frozen=True)
class Idefics3Args(ModelArgs):
    longest_edge: int = field(default=56, metadata={"minimum": 28})


def load_processor(args):
    from mllm.models.builder.build_chat import load_chat_processor

    processor = load_chat_processor(args)
    processor.image_processor.max_image_size = processor.image_processor.size = {"longest_edge": args.longest_edge}
    processor.image_seq_len = (args.longest_edge // 28) ** 2
    return processor


def refuse_other_edges(config, checkpoint):
    if config.model_args.longest_edge % 28:
        place = config.origin("model_args", "longest_edge")
        raise ConfigError(f"{place}: longest_edge={config.model_args.longest_edge} is not a multiple of 28: use 56")


def make_tiny(seed, text, vision):
    from transformers import (
        Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor, LlamaTokenizer,
    )
    from mllm.tiny.parts import TEXT, VISION, random_model, add_special_tokens, new, padded_rows
    from mllm.tiny.vocabulary import train_pieces

    names = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<fake_token_around_image>", "<global-img>",
             "<end_of_utterance>"]
    vocabulary, merges = train_pieces(names)
    tokenizer = new(LlamaTokenizer, vocab=vocabulary, merges=merges, pad_token="<pad>", add_bos_token=True)
    add_special_tokens(tokenizer, names)
    ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    config = new(
        Idefics3Config,
        text_config={"model_type": "llama", **TEXT, "vocab_size": padded_rows(len(tokenizer)), **ids},
        vision_config={**VISION, "image_size": 56},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        eos_token_id=2,
        scale_factor=2,
    )
    edge = {"longest_edge": 56}
    images = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE)
    return random_model(Idefics3ForConditionalGeneration, config, seed), processor


FAMILIES.register(
    Family(
        type="idefics3",
        options=Idefics3Args,
        processor=load_processor,
        encoder=LazyFunction("mllm.models.auto.load:build_encoder"),
        load=LazyFunction("mllm.models.auto.load:load"),
        skeleton=LazyFunction("mllm.models.auto.load:build_skeleton"),
        towers=LazyFunction("mllm.models.auto.towers:find_towers"),
        lora_targets=lambda model: {"language": LANGUAGE, "connector": r".*connector\\.modality_projection\\.proj"},
        model_types=frozenset({"idefics3"}),
        unsupported_keys=frozenset({"image_size", "image_token_len", "part", "train_vision"}),
        rules=(refuse_other_edges,),
        tiny={"idefics3": make_tiny},
    )
)
'''
CONFIG = f"""
_base_ = ["{CHECKOUT}/config/_base_/datasets/dummy.py", "{CHECKOUT}/config/_base_/runtime/finetune.py"]
custom_imports = dict(imports=["outside_idefics3"])
model_args = dict(type="idefics3", model_name_or_path="org/idefics3", lora_r=4, lora_target="connector", max_length=256,
    longest_edge=EDGE)
data_args = dict(train=dict(size=8, image_size=112), validation=None, test=dict(size=2, image_size=112),
                 gen_kwargs=dict(max_new_tokens=3))
training_args = dict(max_steps=2, per_device_train_batch_size=2, logging_steps=1, eval_strategy="no",
                     learning_rate=1e-2, dataloader_num_workers=0)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], str]:
    """A function that writes a config with an image size to the folder of the file of the family."""
    records = {family.type: family for family in FAMILIES}
    monkeypatch.setattr(FAMILIES, "_records", records)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "outside_idefics3", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside_idefics3.py").write_text(FAMILY)

    def write_config(edge: int) -> str:
        (tmp_path / "run.py").write_text(CONFIG.replace("EDGE", str(edge)))
        return "run.py"

    return write_config


def test_its_option_and_its_rule_are_checked(write: Callable[[int], str]) -> None:
    path = write(30)
    line = Path(path).read_text().splitlines().index("    longest_edge=30)") + 1
    with pytest.raises(ConfigError, match=rf"run\.py:{line}: longest_edge=30 is not a multiple of 28"):
        prepare_args(path, tiny=True)
    with pytest.raises(ConfigError, match="model_args.longest_edge must be at least 28"):
        read_config(path, ["model_args.longest_edge=27"])
    with pytest.raises(ConfigError, match="longest_edge is only possible with type='idefics3', and the type is 'image"):
        read_config(path, ["model_args.type=image-text"])
    with pytest.raises(ConfigError, match="image_size is only possible with type='medgemma'"):
        read_config(path, ["model_args.image_size=56"])
    config, _ = prepare_args(path, ["model_args.longest_edge=28"], tiny=True)
    assert config.as_dict()["model_args"]["longest_edge"] == 28
    assert "vision_tower" not in config.as_dict()["model_args"]


def test_it_is_trained_described_applied_and_merged(
    write: Callable[[int], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(56)
    assert finetune.main([path, "--tiny"]) == 0
    run = Path("exp/run/latest")
    assert json.loads((run / "adapter" / "mllm.json").read_text())["longest_edge"] == 56
    rows = json.loads((run / "training_log.json").read_text())["rows"]
    assert [row["step"] for row in rows if "loss" in row][-1] == 2
    assert "connector" in json.loads((run / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert show.main(["sample", path, "--tiny"]) == 0
    assert "<image x 4>" in capsys.readouterr().out
    Image.new("RGB", (80, 60), (20, 90, 40)).save("a.png")
    question = ["--image", "a.png", "--question", "What is shown?", "--max-new-tokens", "3"]
    assert predict.main(["--adapter", str(run), *question]) == 0
    assert merge.main(["--adapter", str(run / "adapter"), "--out", "merged"]) == 0
    assert predict.main(["--model", "merged", *question]) == 0

    # A new process does not know the family until its module is imported.
    monkeypatch.setattr(FAMILIES, "_records", {family.type: family for family in FAMILIES if family.type != "idefics3"})
    monkeypatch.delitem(sys.modules, "outside_idefics3")
    arguments = ["--model", "merged", *question]
    assert run_command(predict.main, arguments) == USER_ERROR
    assert "unknown type 'idefics3'" in (error := capsys.readouterr().err) and "--import MODULE" in error
    assert run_command(predict.main, ["--import", "outside_idefics", *arguments]) == USER_ERROR
    assert "--import outside_idefics failed" in capsys.readouterr().err
    assert run_command(predict.main, ["--import", "outside_idefics3", *arguments]) == 0
