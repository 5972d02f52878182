"""Tests of the allow-list of an upload: data, reports and local paths stay on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.export.card import card_text
from mllm.export.facts import Facts, read_facts, write_facts
from mllm.export.hub import is_hub_name, prepare_upload
from mllm.export.settings import write_settings

BASE = "google/medgemma-4b-it"


def _adapter(folder: Path, base: str = BASE) -> Path:
    """Write the files of an adapter, as after a run."""
    folder.mkdir()
    settings = {"type": "medgemma"}
    write_settings(folder, settings, base)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 4}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    write_facts(folder, Facts(base, settings))
    (folder / "README.md").write_text(card_text("adapter", Facts(base, settings)))
    return folder


def test_only_files_of_the_allow_list_are_uploaded(tmp_path: Path) -> None:
    folder = _adapter(tmp_path / "adapter")
    private = ["predictions.jsonl", "rows.csv", "first_batch.md", "training_log.json", "export_report.json", "scan.dcm"]
    for name in private:
        (folder / name).write_text("of a patient")
    (folder / "images").mkdir()
    (folder / "images" / "tokenizer.json").write_text("of a patient")
    upload = prepare_upload(folder)
    assert upload.kind == "adapter"
    assert sorted(upload.files) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "facts.json",
        "mllm.json",
        "tokenizer.json",
    ]
    assert list(upload.left_out) == sorted([*private, "images/tokenizer.json"])
    assert upload.size("adapter_model.safetensors") == len(b"weights")


def test_a_complete_card_is_required(tmp_path: Path) -> None:
    folder = _adapter(tmp_path / "adapter")
    card = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    with pytest.raises(ConfigError, match="has no README.md"):
        prepare_upload(folder)
    (folder / "README.md").write_text(card.replace("For research only; not for clinical use.", ""))
    with pytest.raises(ConfigError, match="is incomplete"):
        prepare_upload(folder)
    (folder / "README.md").write_text(card.partition("## Terms")[0])
    with pytest.raises(ConfigError, match="section '## Terms'"):
        prepare_upload(folder)


def test_a_local_base_must_be_renamed(tmp_path: Path) -> None:
    base = tmp_path / "medgemma-4b-it"
    base.mkdir()
    folder = _adapter(tmp_path / "adapter", str(base))
    with pytest.raises(ConfigError, match="names the local folder.*--base ORG/NAME"):
        prepare_upload(folder)
    upload = prepare_upload(folder, BASE)
    texts = {
        name: source.decode() if isinstance(source, bytes) else source.read_text()
        for name, source in upload.files.items()
        if not name.endswith(".safetensors")
    }
    assert not any(str(tmp_path) in text for text in texts.values())
    assert json.loads(texts["adapter_config.json"]) == {"base_model_name_or_path": BASE, "r": 4}
    assert json.loads(texts["mllm.json"])["base"] == BASE
    assert json.loads(texts["facts.json"])["base"] == BASE
    assert f"\nbase_model: {BASE}\n" in texts["README.md"]
    assert upload.size("mllm.json") == len(texts["mllm.json"])


def test_local_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "somebody")
    folder = _adapter(tmp_path / "adapter")
    write_settings(folder, {"type": "shikra", "vision_tower": str(tmp_path / "somebody" / "clip")}, BASE)
    with pytest.raises(ConfigError, match=r"mllm\.json contains local paths"):
        prepare_upload(folder)


def test_local_paths_in_facts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "somebody")
    folder = _adapter(tmp_path / "adapter")
    facts = read_facts(folder)
    assert facts is not None
    write_facts(folder, replace(facts, training={"adapter_path": str(tmp_path / "somebody" / "adapter")}))
    with pytest.raises(ConfigError, match=r"facts\.json contains local paths"):
        prepare_upload(folder)


def test_an_export_of_an_older_version_is_uploaded_without_facts(tmp_path: Path) -> None:
    base = tmp_path / "medgemma-4b-it"
    folder = _adapter(tmp_path / "adapter", str(base))
    (folder / "facts.json").unlink()
    with pytest.raises(ConfigError, match="names the local folder"):
        prepare_upload(folder)
    upload = prepare_upload(folder, BASE)
    assert "facts.json" not in upload.files
    card = upload.files["README.md"]
    assert isinstance(card, bytes)
    assert str(tmp_path) not in card.decode()


def _merged(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        (folder / name).write_bytes(b"x")
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text(card_text("merged", Facts(BASE, {"type": "medgemma"})))
    return folder


def test_a_merged_model_is_uploaded_whole(tmp_path: Path) -> None:
    folder = _merged(tmp_path / "merged")
    upload = prepare_upload(folder)
    assert upload.kind == "merged"
    assert len(upload.files) == 5
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match="lacks model-00002-of-00002.safetensors"):
        prepare_upload(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match="not complete"):
        prepare_upload(folder)


def test_gguf_files_are_uploaded_with_their_modelfile(tmp_path: Path) -> None:
    for name in ("model-q8_0.gguf", "mmproj.gguf", "Modelfile", "notes.txt"):
        (tmp_path / name).write_text("x")
    facts = Facts("google/gemma-3n-E4B-it", {"type": "causal-lm"})
    write_facts(tmp_path, facts)
    (tmp_path / "README.md").write_text(card_text("gguf", facts))
    upload = prepare_upload(tmp_path)
    assert (upload.kind, list(upload.left_out)) == ("gguf", ["notes.txt"])
    assert sorted(upload.files) == ["Modelfile", "README.md", "facts.json", "mmproj.gguf", "model-q8_0.gguf"]


def test_a_run_folder_is_not_pushed(tmp_path: Path) -> None:
    _adapter(tmp_path / "adapter")
    (tmp_path / "predictions.jsonl").touch()
    with pytest.raises(ConfigError, match="it is a run folder, which contains data; pass .*adapter"):
        prepare_upload(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        prepare_upload(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("google/gemma-3-4b-it", True), ("gemma", False), ("a/b/c", False), ("../x", False), ("ckpt/x y", False)],
)
def test_names_on_the_hub(name: str, expected: bool) -> None:
    assert is_hub_name(name) is expected
