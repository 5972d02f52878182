"""What leaves is a model with its card; data, reports and names of folders stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.export.card import Facts, card_text
from mllm.export.hub import is_hub_name, pack
from mllm.export.settings import write_settings

BASE = "google/medgemma-4b-it"


def _adapter(folder: Path, base: str = BASE) -> Path:
    """The files of an adapter, as a run leaves them."""
    folder.mkdir()
    settings = {"type": "medgemma"}
    write_settings(folder, settings, base)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 4}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text(card_text("adapter", settings, Facts(base=base)))
    return folder


def test_only_files_known_by_name_are_sent(tmp_path: Path) -> None:
    folder = _adapter(tmp_path / "adapter")
    private = ["predictions.jsonl", "rows.csv", "first_batch.md", "training_log.json", "export_report.json", "scan.dcm"]
    for name in private:
        (folder / name).write_text("of a patient")
    (folder / "images").mkdir()
    (folder / "images" / "tokenizer.json").write_text("of a patient")
    parcel = pack(folder)
    assert parcel.kind == "adapter"
    assert sorted(parcel.files) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "mllm.json",
        "tokenizer.json",
    ]
    assert list(parcel.kept) == sorted([*private, "images/tokenizer.json"])
    assert parcel.size("adapter_model.safetensors") == len(b"weights")


def test_nothing_leaves_without_a_card(tmp_path: Path) -> None:
    folder = _adapter(tmp_path / "adapter")
    card = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    with pytest.raises(ConfigError, match="has no README.md"):
        pack(folder)
    (folder / "README.md").write_text(card.replace("For research only; not for clinical use.", ""))
    with pytest.raises(ConfigError, match="no complete card"):
        pack(folder)
    (folder / "README.md").write_text(card.partition("## Terms")[0])
    with pytest.raises(ConfigError, match="section '## Terms'"):
        pack(folder)


def test_a_base_of_this_machine_needs_its_name(tmp_path: Path) -> None:
    base = tmp_path / "medgemma-4b-it"
    base.mkdir()
    folder = _adapter(tmp_path / "adapter", str(base))
    with pytest.raises(ConfigError, match="a folder that nobody else has.*--base ORG/NAME"):
        pack(folder)
    parcel = pack(folder, BASE)
    texts = {
        name: source.decode() if isinstance(source, bytes) else source.read_text()
        for name, source in parcel.files.items()
        if not name.endswith(".safetensors")
    }
    assert not any(str(tmp_path) in text for text in texts.values())
    assert json.loads(texts["adapter_config.json"]) == {"base_model_name_or_path": BASE, "r": 4}
    assert json.loads(texts["mllm.json"])["base"] == BASE
    assert f"\nbase_model: {BASE}\n" in texts["README.md"]
    assert parcel.size("mllm.json") == len(texts["mllm.json"])


def test_names_of_folders_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "somebody")
    folder = _adapter(tmp_path / "adapter")
    write_settings(folder, {"type": "shikra", "vision_tower": str(tmp_path / "somebody" / "clip")}, BASE)
    with pytest.raises(ConfigError, match=r"mllm\.json names folders"):
        pack(folder)


def _merged(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        (folder / name).write_bytes(b"x")
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text(card_text("merged", {"type": "medgemma"}, Facts(base=BASE)))
    return folder


def test_a_merged_model_is_sent_whole(tmp_path: Path) -> None:
    folder = _merged(tmp_path / "merged")
    parcel = pack(folder)
    assert parcel.kind == "merged"
    assert len(parcel.files) == 5
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match="lacks model-00002-of-00002.safetensors"):
        pack(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match="not complete"):
        pack(folder)


def test_gguf_files_are_sent_with_their_modelfile(tmp_path: Path) -> None:
    for name in ("model-q8_0.gguf", "mmproj.gguf", "Modelfile", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "README.md").write_text(card_text("gguf", {"type": "causal-lm"}, Facts(base="google/gemma-3n-E4B-it")))
    parcel = pack(tmp_path)
    assert (parcel.kind, list(parcel.kept)) == ("gguf", ["notes.txt"])
    assert sorted(parcel.files) == ["Modelfile", "README.md", "mmproj.gguf", "model-q8_0.gguf"]


def test_a_run_folder_is_not_pushed(tmp_path: Path) -> None:
    _adapter(tmp_path / "adapter")
    (tmp_path / "predictions.jsonl").touch()
    with pytest.raises(ConfigError, match="it is a run's folder, with data in it; name .*adapter"):
        pack(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        pack(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("google/gemma-3-4b-it", True), ("gemma", False), ("a/b/c", False), ("../x", False), ("ckpt/x y", False)],
)
def test_names_on_the_hub(name: str, expected: bool) -> None:
    assert is_hub_name(name) is expected
