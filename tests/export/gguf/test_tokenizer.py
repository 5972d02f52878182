"""Tests of tokenizers: llama.cpp and the tokenizer of the checkpoint produce equal tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from mllm.errors import ConfigError
from mllm.export.gguf.model import export_model
from mllm.export.gguf.tokenizer import read_vocabulary
from tests.export.gguf.conftest import texts, write_model, write_sentencepiece


def differing(runtime: Any, tokenizer: Any) -> list[str]:
    return [text for text in texts() if runtime.tokens(text) != tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_texts_have_equal_tokens_from_tokenizer_json(
    checkpoints: Callable[[str], Path], runtime: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    folder = checkpoints(family)
    opened = runtime(export_model(folder, tmp_path / "model.gguf", "f32"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wrong = differing(opened, tokenizer)
    assert not wrong
    assert len({len(tokenizer(text)["input_ids"]) for text in texts()}) > 20


@pytest.mark.parametrize("dummy_prefix", [False, True], ids=["gemma", "llama"])
@pytest.mark.parametrize("layout", ["tokenizer.model", "tokenizer.json"])
def test_texts_have_equal_tokens_from_sentencepiece(
    runtime: Callable[..., Any], dummy_prefix: bool, layout: str, tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    write_sentencepiece(trained, dummy_prefix=dummy_prefix)
    kind = "LlamaTokenizer" if dummy_prefix else "GemmaTokenizer"
    names = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>") if dummy_prefix else {}
    (trained / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "legacy": True, **names}))
    tokenizer = AutoTokenizer.from_pretrained(trained)
    folder = write_model("llama" if dummy_prefix else "gemma", tmp_path / "model", tokenizer, num_hidden_layers=1)
    if layout == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
        for name in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(trained / name, folder / name)
    vocabulary = read_vocabulary(folder, {})
    assert vocabulary.model == "llama"
    assert vocabulary.space_prefix == dummy_prefix
    opened = runtime(export_model(folder, tmp_path / "model.gguf", "f32"))
    original = SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    plain = [text for text in texts() if "<" not in text]
    assert [text for text in plain if opened.tokens(text) != original.encode(text)] == []
    # transformers leaves out the prefix where a text begins with a space; SentencePiece and llama.cpp do not.
    wrong = [text for text in differing(opened, tokenizer) if not (dummy_prefix and text.startswith((" ", "▁")))]
    assert not wrong


def test_special_tokens_and_the_prompt_of_the_chat_template(
    checkpoints: Callable[[str], Path], runtime: Callable[..., Any], tmp_path: Path
) -> None:
    folder = checkpoints("gemma3")
    out = export_model(folder, tmp_path / "model.gguf", "f32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Is the heart enlarged?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    opened = runtime(out)
    assert opened.tokens(prompt.removeprefix("<bos>"), special=True) == expected
    assert expected[:2] == [2, 4]
    api, vocabulary = opened.api, opened.vocabulary
    assert api.llama_vocab_bos(vocabulary) == 2
    assert api.llama_vocab_eos(vocabulary) == 1
    assert api.llama_vocab_eot(vocabulary) == 5
    assert api.llama_vocab_is_eog(vocabulary, 5)
    assert api.llama_model_chat_template(opened.model, None).decode() == tokenizer.chat_template


def test_a_vocabulary_fits_the_rows_of_the_embeddings(checkpoints: Callable[[str], Path]) -> None:
    vocabulary = read_vocabulary(checkpoints("gemma3"), {})
    size = len(vocabulary.tokens)
    vocabulary.fit(size + 3)
    assert vocabulary.tokens[-2:] == [f"[PAD{size + 1}]", f"[PAD{size + 2}]"]
    assert len(vocabulary.types) == len(set(vocabulary.tokens)) == size + 3
    vocabulary.fit(5)
    assert vocabulary.tokens == ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"]
    assert "eot" not in vocabulary.ids


def test_other_tokenizers_are_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints("llama"), tmp_path / "model"))
    path = folder / "tokenizer.json"
    fast = json.loads(path.read_text())
    fast["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\w+"}
    path.write_text(json.dumps(fast))
    with pytest.raises(ConfigError, match="splits texts by a pattern that llama.cpp does not support"):
        read_vocabulary(folder, {})
    path.write_text(json.dumps(fast | {"model": {"type": "Unigram"}}))
    with pytest.raises(ConfigError, match="of type Unigram"):
        read_vocabulary(folder, {})
    path.unlink()
    with pytest.raises(ConfigError, match="neither tokenizer.model nor tokenizer.json"):
        read_vocabulary(folder, {})
