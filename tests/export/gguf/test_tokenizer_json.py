"""Tests of the reader of tokenizer.json: merges as ids, in both formats, with any characters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mllm.errors import ConfigError
from mllm.export.gguf.tokenizer_json import read_tokenizer_json

MERGES = [["a", "b"], ['"', "]"], ["\\", '"]'], ["é", "▁😀"], [",", "["], ["\n", "a"]]
VOCABULARY = {piece: index for index, piece in enumerate(sorted({part for pair in MERGES for part in pair}))}
REST = {"added_tokens": [{"content": '"merges": ['}], "model": {"type": "BPE", "vocab": {**VOCABULARY, "merges": 99}}}


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_merges_are_pairs_of_ids(pairs: bool, indent: int | None, ascii_only: bool, tmp_path: Path) -> None:
    written = [pair if pairs else " ".join(pair) for pair in MERGES]
    fast = {**REST, "model": {**REST["model"], "merges": written, "after": [1]}}  # type: ignore[dict-item]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast, indent=indent, ensure_ascii=ascii_only), "utf-8")
    rest, merges = read_tokenizer_json(tmp_path / "tokenizer.json")
    assert rest == {**fast, "model": {**fast["model"], "merges": []}}  # type: ignore[dict-item]
    assert merges.tolist() == [[VOCABULARY[left], VOCABULARY[right]] for left, right in MERGES]


def test_a_tokenizer_without_merges_has_none(tmp_path: Path) -> None:
    assert read_tokenizer_json(tmp_path / "tokenizer.json")[0] == {}
    for fast in (REST, {"model": {"vocab": {}, "merges": []}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(fast))
        rest, merges = read_tokenizer_json(tmp_path / "tokenizer.json")
        assert rest == fast
        assert np.array_equal(merges, np.empty((0, 2)))


@pytest.mark.parametrize(
    "text",
    ['{"model"', '{"model": {"vocab": {"a": 0}, "merges": [["a", "c"]]}}', '{"model": {"vocab": {}, "merges": ["a"'],
)
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=r"tokenizer.json cannot be read \(.*: download or save the tokenizer again"):
        read_tokenizer_json(tmp_path / "tokenizer.json")
