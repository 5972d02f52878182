"""Requests of chat completions without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medical_files import write_png

from mllm.serve.limits import Limits, RequestError
from mllm.serve.schema import parse_chat


def test_a_file_that_is_named_often_counts_as_often(tmp_path: Path) -> None:
    """Each image costs memory and time besides its pixels, so one of a pixel counts 1,024."""
    dot = write_png(tmp_path / "a.png", np.zeros((1, 1), np.uint8)).read_bytes()
    part = {"type": "file", "file": {"filename": "a.png"}}

    def request(count: int) -> dict[str, Any]:
        content = [part] * count + [{"type": "text", "text": "Why?"}]
        return {"model": "a", "messages": [{"role": "user", "content": content}]}

    limits = Limits(pixels=10 * 1024 + 1000)
    assert len(parse_chat(request(10), {"a.png": dot}, ["a"], limits).request.sample.images) == 10
    with pytest.raises(RequestError, match=r"messages\[0\].content\[10\].file has more than 1,000 pixels") as refusal:
        parse_chat(request(12), {"a.png": dot}, ["a"], limits)
    assert refusal.value.status == 413


def test_the_number_of_images_is_limited(tmp_path: Path) -> None:
    """The model enlarges each image to the size of its input, so many small ones take the memory of large ones."""
    dot = write_png(tmp_path / "a.png", np.zeros((1, 1), np.uint8)).read_bytes()
    content = [{"type": "file", "file": {"filename": "a.png"}}] * 4
    request = {"model": "a", "messages": [{"role": "user", "content": content}]}
    assert len(parse_chat(request, {"a.png": dot}, ["a"], Limits(images=4)).request.sample.images) == 4
    sentence = r"messages\[0\].content\[3\].file exceeds 3 images, the limit of this server: send fewer"
    with pytest.raises(RequestError, match=sentence) as refusal:
        parse_chat(request, {"a.png": dot}, ["a"], Limits(images=3))
    assert refusal.value.status == 413
