"""Texts with options of their own: pieces that joined are the answer, stop texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mllm.config.schema import ModelArgs
from mllm.models.builder.builder import load_encoder
from mllm.models.encoding.text_encoder import TextEncoder
from mllm.models.generation.options import GenerationOptions
from mllm.models.generation.requested import GeneratedText

HEADS = {"box": {"type": "BoxHead", "hidden": 64}}


@pytest.fixture(scope="module", params=["text", "heads"])
def encoder(request: pytest.FixtureRequest, tiny_medgemma: Path) -> TextEncoder:
    """An encoder whose answers are text, and one whose answers have object tokens."""
    heads = HEADS if request.param == "heads" else {}
    encoder = load_encoder(ModelArgs("medgemma", str(tiny_medgemma), lora_r=None, heads=heads))
    assert isinstance(encoder, TextEncoder)
    return encoder


def token_ids(encoder: TextEncoder, kinds: list[int]) -> list[int]:
    """Return tokens: numbers below 60 are those of a few characters, bytes and objects, others are random ones.

    A few of them have no token in the tokenizer, as the last rows of many vocabularies.
    """
    texts = ["\n", " ", ";", "<loc>", "<obj_vis_s>", "<obj_vis_e>", "<0xF0>", "<0x9F>", "<0x0A>", "▁the", "a"]
    known = [encoder.tokenizer.convert_tokens_to_ids(text) for text in texts]
    found = [token for token in known if token is not None and token != encoder.tokenizer.unk_token_id]
    stop = encoder.turn_end_id
    ids = [found[kind % len(found)] if kind < 60 else kind % (len(encoder.tokenizer) + 100) for kind in kinds]
    return [token for token in ids if token != stop]


@example(kinds=[60, 1247, 138], stop=())  # a special token inside a run of bytes
@example(kinds=[6, 4900, 7], stop=())  # a number without a token inside one
@given(
    kinds=st.lists(st.integers(0, 5000), max_size=24), stop=st.sampled_from([(), ("a",), ("\n\n", "th"), ("the a",)])
)
def test_pieces_joined_are_the_answer(encoder: TextEncoder, kinds: list[int], stop: tuple[str, ...]) -> None:
    pieces: list[str] = []
    text = GeneratedText(GenerationOptions(max_new_tokens=100, stop=stop), on_text=pieces.append)
    for token in token_ids(encoder, kinds):
        if text.end is None:
            text.add(token, False, encoder)
    answer = encoder.read_text(text.text(encoder)).text
    assert answer.startswith(text.sent), "a later token changed a piece that was sent"
    text.finish(answer)
    assert "".join(pieces) == answer
    assert all(pieces) and not any(one in text.text(encoder) for one in stop)


@pytest.mark.parametrize("stop", [(), ("zzz",)])
def test_the_text_is_decoded_once_for_each_token(
    encoder: TextEncoder, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = type(encoder).text_in

    def text_in(self: TextEncoder, tokens: Sequence[int]) -> str:
        calls.append(len(tokens))
        return real(self, tokens)

    monkeypatch.setattr(type(encoder), "text_in", text_in)
    text = GeneratedText(GenerationOptions(max_new_tokens=100, stop=stop), on_text=lambda piece: None)
    for token in [encoder.tokenizer.convert_tokens_to_ids("a")] * 20:
        text.add(token, False, encoder)
    assert calls == list(range(1, 21))
