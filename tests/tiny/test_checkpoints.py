"""Tiny checkpoints: they load as real ones do, see images, and render and tokenize as their families do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Gemma3ForConditionalGeneration, Gemma3Processor

from mllm.errors import ConfigError
from mllm.family import FAMILIES
from mllm.tiny.adapter import ensure_tiny_adapter
from mllm.tiny.checkpoints import ensure_tiny, write_tiny

TEXTS = [
    "What is the ejection fraction?",
    "Line one.\nLine two.\n\nAfter a blank line.\n\n\n",
    "Numbers 0123456789 and 3.14, 50 %",
    "Ünïcode: µm, 日本語, 🫀, é",
    "tabs\tand  two spaces",
]
CONVERSATION = [
    {"role": "system", "content": [{"type": "text", "text": " Be brief. "}]},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Compare "},
            {"type": "image"},
            {"type": "image"},
            {"type": "text", "text": " these."},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "They are\nequal. "}]},
    {"role": "user", "content": "Sure? "},
    {"role": "assistant", "content": "Yes."},
]


def images() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    return [Image.fromarray(noise), Image.new("RGB", (80, 60), (20, 90, 40))]


@pytest.fixture(scope="session")
def tiny_shikra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("shikra", tmp_path_factory.mktemp("tiny") / "shikra")


@pytest.fixture(params=["medgemma", "llava", "qwen2_vl", "shikra"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"tiny_{request.param}")
    return path


def test_it_loads_like_a_published_checkpoint_and_uses_the_image(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    logits = []
    for image in images():
        messages = [
            {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}
        ]
        batch = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits.append(model(**batch).logits[0, -1])
    assert logits[0].isfinite().all()
    assert (logits[0] - logits[1]).abs().mean() > 0.1 * logits[0].std()


def test_it_is_small_and_without_zero_parameters(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert all(parameter.abs().sum() > 0 for parameter in model.parameters())
    widths = [module.in_features for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert all(width % 64 == 0 for width in widths), "bitsandbytes quantizes in blocks of 64"


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_is_lossless(folder: Path, text: str) -> None:
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).removeprefix(" ") == text


def test_bytes_follow_from_the_seed(tmp_path: Path, tiny_llava: Path) -> None:
    def digest(folder: Path) -> dict[str, str]:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}

    same = digest(write_tiny("llava", tmp_path / "same"))
    assert same == digest(tiny_llava)
    other = digest(write_tiny("llava", tmp_path / "other", seed=1))
    assert [name for name in same if same[name] != other[name]] == ["model.safetensors"]
    assert not list(tmp_path.glob(".*")), "nothing is left of the temporary folders"


def test_an_existing_checkpoint_is_not_changed(tiny_llava: Path) -> None:
    before = (tiny_llava / "model.safetensors").stat().st_mtime_ns
    assert write_tiny("llava", tiny_llava, seed=5) == tiny_llava
    assert (tiny_llava / "model.safetensors").stat().st_mtime_ns == before


def test_tiny_checkpoints_and_adapters_are_written_once(tmp_path: Path) -> None:
    folder = ensure_tiny("llava", tmp_path)
    assert folder == tmp_path / "tiny-llava" and (folder / "config.json").is_file()
    adapter = ensure_tiny_adapter(folder, 3)
    written = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    assert ensure_tiny_adapter(ensure_tiny("llava", tmp_path), 3) == adapter
    assert (adapter / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert adapter == tmp_path / "tiny-llava-adapter-r3"


def test_dimensions_can_be_changed(tmp_path: Path) -> None:
    folder = write_tiny("medgemma", tmp_path / "deep", text={"num_hidden_layers": 1, "layer_types": ["full_attention"]})
    assert AutoModelForImageTextToText.from_pretrained(folder).config.text_config.num_hidden_layers == 1


def test_medgemma_has_gemmas_special_tokens(tiny_medgemma: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_medgemma)
    model = AutoModelForImageTextToText.from_pretrained(tiny_medgemma)
    assert isinstance(processor, Gemma3Processor) and isinstance(model, Gemma3ForConditionalGeneration)
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.tokenize("a<start_of_turn>b<end_of_turn>")[1::2] == ["<start_of_turn>", "<end_of_turn>"]
    assert tokenizer("a")["input_ids"][0] == 2, (
        "a published tokenizer adds <bos> too: who renders must not add it twice"
    )
    block = "<start_of_image>" + "<image_soft_token>" * 256 + "<end_of_image>"
    assert processor.full_image_sequence == f"\n\n{block}\n\n"
    assert model.config.image_token_id == tokenizer.image_token_id
    assert set(model.config.text_config.layer_types) == {"sliding_attention", "full_attention"}
    assert len(tokenizer) <= model.config.text_config.vocab_size <= 1500
    assert tokenizer.tokenize("▁12 12") == tokenizer.tokenize(" 12 12") == ["▁", "1", "2", "▁", "1", "2"]


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("tiny, file", [("tiny_medgemma", "gemma3_medgemma"), ("tiny_student", "gemma3n")])
def test_gemmas_template_renders_as_the_published_one(
    request: pytest.FixtureRequest, shared_data: Path, tiny: str, file: str, start: int, generate: bool
) -> None:
    published = (shared_data / "chat_templates" / f"{file}.jinja").read_text()
    tokenizer = AutoProcessor.from_pretrained(request.getfixturevalue(tiny)).tokenizer
    for end in range(start + 1, len(CONVERSATION) + 1):
        messages = CONVERSATION[start:end]
        ours = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        assert ours == tokenizer.apply_chat_template(
            messages, chat_template=published, tokenize=False, add_generation_prompt=generate
        )


def test_medgemmas_template_requires_alternating_roles(tiny_medgemma: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(tiny_medgemma).tokenizer
    with pytest.raises(TemplateError, match="alternate"):
        tokenizer.apply_chat_template(CONVERSATION[2:], tokenize=False)
    with pytest.raises(TemplateError, match="alternate"):
        tokenizer.apply_chat_template([CONVERSATION[1], CONVERSATION[3]], tokenize=False)


def test_families_by_type() -> None:
    assert FAMILIES.find("medgemma").tiny_name() == "medgemma"
    assert FAMILIES.find("image-text").tiny_name() == "llava"
    assert FAMILIES.find("shikra").tiny_name() == FAMILIES.find("perceptionGPT").tiny_name() == "shikra"
    assert FAMILIES.find("causal-lm").tiny_name() == FAMILIES.find("causal-lm").tiny_name("org/another") == "gemma3n"
    assert FAMILIES.find("causal-lm").tiny_name("google/gemma-3n-E4B-it") == "gemma3n-deep"  # llama.cpp supports it
    assert FAMILIES.find("causal-lm").tiny_name("google/vaultgemma-1b") == "vaultgemma"
    with pytest.raises(ConfigError, match="did you mean 'medgemma'"):
        FAMILIES.find("medgema").tiny_name()
    with pytest.raises(ConfigError, match="unknown tiny checkpoint"):
        write_tiny("gema", Path("nowhere"))
