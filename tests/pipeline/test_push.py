"""Tests of the command `push`: the list of a dry run, and refusals before the upload."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.export.card import card_text
from mllm.export.facts import Facts
from mllm.pipeline.push import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("model.gguf", "12345678901"), ("Modelfile", "FROM x"), ("predictions.jsonl", "private")):
        (tmp_path / name).write_text(text)
    (tmp_path / "README.md").write_text(card_text("gguf", Facts("google/gemma-3n-E4B-it", {"type": "causal-lm"})))
    return tmp_path


def test_a_dry_run_lists_files_and_sizes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["--folder", str(folder), "--repo", "me/model", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = f"{(folder / 'README.md').stat().st_size:,}"
    assert [line.split() for line in lines[:3]] == [["6", "Modelfile"], [size, "README.md"], ["11", "model.gguf"]]
    assert "in 3 files would go to https://huggingface.co/me/model (private)" in lines[3]
    assert lines[4] == "not pushed: predictions.jsonl"
    main(["--folder", str(folder), "--repo", "me/model", "--dry-run", "--public"])
    assert "(public)" in capsys.readouterr().out


def test_a_push_without_login_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="not logged in.*hf auth login"):
        main(["--folder", str(folder), "--repo", "me/model"])


def test_a_push_without_network_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run with HF_HUB_OFFLINE."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    with pytest.raises(ConfigError, match="nothing was pushed to me/model"):
        main(["--folder", str(folder), "--repo", "me/model"])


@pytest.mark.parametrize("repo", ["model", "a/b/c", "me/mo del", "me/-x-"])
def test_a_repository_has_an_owner(folder: Path, repo: str) -> None:
    with pytest.raises(ConfigError, match="--repo"):
        main(["--folder", str(folder), "--repo", repo, "--dry-run"])


def test_without_a_card_even_a_dry_run_is_refused(folder: Path) -> None:
    (folder / "README.md").unlink()
    with pytest.raises(ConfigError, match="a model card is required"):
        main(["--folder", str(folder), "--repo", "me/model", "--dry-run"])
