"""Tests of `mllm.json`: round trip, missing and damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.export.settings import KEYS, read_settings, write_settings
from mllm.run_files import SETTINGS


def test_settings_survive_a_round_trip(tmp_path: Path) -> None:
    settings = dict(type="medgemma", image_size=448, image_token_len=64, max_length=512, system="s", turn_end=None)
    write_settings(tmp_path, {**settings, "lora_r": 16})
    assert read_settings(tmp_path, type="image-text") == settings
    assert set(settings) <= set(KEYS)


def test_a_foreign_folder_has_the_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path, type="medgemma") == {"type": "medgemma"}


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(ConfigError, match="mllm.json"):
        read_settings(tmp_path)
