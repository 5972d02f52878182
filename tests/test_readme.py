"""Checks of the documents: their paths, links, configs, options and commands exist and run."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import shlex
from pathlib import Path

import code_map
import pytest
from pydicom.data import get_testdata_file

from mllm.config.schema import DataArgs, ModelArgs
from mllm.pipeline import cli
from mllm.pipeline.command import USER_ERROR, run_command

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "MEDGEMMA.md",
        "mllm/README.md",
        "ckpt/README.md",
        "config/README.md",
        "scripts/README.md",
        "scripts/bench/README.md",
        "config/training_configs/README.md",
        "mllm/metrics/README.md",
        "mllm/dataset/public/README.md",
        "mllm/models/t5gemma/README.md",
    )
]
ABOUT = re.compile(r"for research only; not for clinical use", re.IGNORECASE)
PATH = re.compile(r"(?<![\w/.-])(?:mllm|config|scripts|tests|ckpt)/[\w./<>*-]*[\w/]")
PHONE = "From adapter to phone"
TRANSLATION = (
    "python mllm/pipeline/finetune.py config/training_configs/t5gemma_mtnt_en_fr.py --tiny "
    "--cfg-options training_args.max_steps=4",
    'mllm predict --adapter exp/t5gemma_mtnt_en_fr/latest/adapter --question "What is 2 and 3?"',
    "mllm export --model exp/t5gemma_mtnt_en_fr/latest/adapter --out translation.gguf "
    "# refused: llama.cpp has no T5Gemma",
)
"""Training and prediction of a translation model, whose export llama.cpp does not support."""
NOT_IN_GIT = ("ckpt/medgemma-4b-it", "ckpt/flare25-medgemma", "ckpt/tiny-")
WRITTEN_BY_THE_READER = ("mllm/dataset/single_image_dataset/your_medical_dataset.py",)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(document: Path | str, *languages: str) -> list[str]:
    text = document if isinstance(document, str) else document.read_text(encoding="utf-8")
    matches = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [text for language, text in matches if language in languages]


def section(document: Path, title: str) -> str:
    match = re.search(rf"^## {title}$.*?(?=^## )", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert match
    return match[0]


def lines_of(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def run_line(line: str) -> int:
    """Run a command in this process as a shell would, and return its exit code. Updates are small and answers short."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["python"]:
        if words[1].endswith("/finetune.py"):
            options = [] if "--cfg-options" in words else ["--cfg-options"]
            words += [*options, "training_args.gradient_accumulation_steps=1", "data_args.gen_kwargs.max_new_tokens=4"]
        return run_command(importlib.import_module(words[1].removesuffix(".py").replace("/", ".")).main, words[2:])
    assert words[:1] == ["mllm"], line
    short = ["--max-new-tokens", "4"] if words[1] == "predict" else []
    return run_command(cli.main, [*words[1:], *short])


def commands(document: Path) -> list[list[str]]:
    lines = [line for block in blocks(document, "bash", "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_paths_exist(document: Path) -> None:
    text = re.sub(r"https?://\S+", "", document.read_text(encoding="utf-8"))
    for path in PATH.findall(text):
        if path.startswith(NOT_IN_GIT) or path in WRITTEN_BY_THE_READER or "<" in path:
            continue
        assert any(list(folder.glob(path.rstrip("/"))) for folder in (ROOT, document.parent)), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_have_targets(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        linked = document.parent / name if name else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_code_blocks_are_code(document: Path) -> None:
    for block in blocks(document, "python"):
        ast.parse(block)
    for block in blocks(document, "json"):
        json.loads(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_config_blocks_use_keys_that_exist(document: Path) -> None:
    known = {"model_args": vars(ModelArgs)["__dataclass_fields__"], "data_args": vars(DataArgs)["__dataclass_fields__"]}
    for block in blocks(document, "python"):
        for node in ast.parse(block).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                section = known.get(ast.unparse(node.targets[0]), {})
                for keyword in node.value.keywords if section else []:
                    assert keyword.arg in section, keyword.arg


def test_every_script_is_in_its_table() -> None:
    table = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "scripts").rglob("*")):
        if path.suffix in (".py", ".sh", ".ipynb") and not path.name.endswith("_work.py"):
            assert path.name in table, path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_options_of_scripts_exist(document: Path) -> None:
    for words in commands(document):
        if words[:1] in (["python"], ["bash"]) and words[1].startswith("scripts/") and words[1] != "scripts/test.sh":
            source = (ROOT / words[1]).read_text(encoding="utf-8")
            for word in words[2:]:
                assert not word.startswith("--") or word in source, f"{words[1]} {word}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_use_options_that_exist(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(document):
        if words[0] != "python" or not words[1].startswith("mllm/pipeline/"):
            continue
        pipeline = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
        subcommand = [word for word in words[2:3] if word.isalpha()]
        with pytest.raises(SystemExit):
            pipeline.main([*subcommand, "--help"])
        usage = capsys.readouterr().out
        for word in words[2:]:
            assert not word.startswith("--") or re.search(rf"{word}\b", usage), f"{words[1]} {word}"


def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files and commands of README.md, in order, in an empty folder."""
    readme = ROOT / "README.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("sys.stdin", io.StringIO("What is seen?\nWhy?\n"))  # input of --chat
    Path("config").symlink_to(ROOT / "config")
    Path("my_run.py").write_text(next(block for block in blocks(readme, "python") if block.startswith("# my_run.py")))
    row = json.loads(blocks(readme, "json")[0])
    echo = get_testdata_file("examples_ybr_color.dcm", download=False)
    Path("mydata/images").mkdir(parents=True)
    for name in (Path("mydata/images") / row["image"], Path("scan.dcm")):
        name.symlink_to(str(echo))
    Path("mydata/train.jsonl").write_text(json.dumps(row) + "\n")
    Path("questions.jsonl").write_text(json.dumps({"image": "scan.dcm", "question": "Why?"}) + "\n")
    elsewhere = blocks(section(readme, PHONE), "bash")
    lines = [line for block in blocks(readme, "bash") if block not in elsewhere for line in lines_of(block)]
    for line in lines:
        assert run_line(line) == 0, line
    assert len(lines) >= 6
    assert Path("exp/my_run/latest/adapter/adapter_model.safetensors").is_file()
    assert "prediction" in json.loads(Path("answers.jsonl").read_text())
    assert Path("my_model/config.json").is_file()


def test_the_commands_of_the_section_about_phones_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the section in order, and the refusals that the section mentions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    Path("config").symlink_to(ROOT / "config")
    text = section(ROOT / "README.md", PHONE)
    (phone,) = blocks(text, "bash")
    for line in lines_of(phone):
        assert run_line(line) == 0, line
    output = capsys.readouterr().out
    assert re.search(r"in 4 files would go to https://huggingface.co/me/first-aid \(private\)", output)
    assert {path.name for path in Path("first-aid/gguf").iterdir()} == {
        "README.md",
        "Modelfile",
        "facts.json",
        "first-aid.gguf",
    }
    for line in TRANSLATION:
        refused = line.partition("# refused: ")[2]
        assert run_line(line) == (USER_ERROR if refused else 0), line
        assert refused in capsys.readouterr().err, line
    assert not Path("translation.gguf").exists()


def test_the_limits_are_stated_first() -> None:
    for name in ("README.md", "MEDGEMMA.md"):
        head = "\n".join((ROOT / name).read_text(encoding="utf-8").splitlines()[:10])
        assert ABOUT.search(head), name


def test_ethics_and_sources_are_named() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for word in (
        "Health AI Developer Foundations",
        "DEITY",
        "arXiv:2507.05201",
        "arXiv:2311.06612",
        "arXiv:2306.15195",
    ):
        assert word in text, word
    assert "pip install mllm" not in text


def test_every_config_is_in_the_table() -> None:
    text = (ROOT / "config" / "training_configs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "config" / "training_configs").glob("*.py"):
        assert name_of(path) in text, path.name


def test_the_map_of_the_code_is_current() -> None:
    assert code_map.with_map(code_map.README.read_text(encoding="utf-8")) == code_map.README.read_text(encoding="utf-8")


def test_the_guide_repeats_no_number_without_a_source() -> None:
    """Claims of the first version of the guide that have no source or are wrong."""
    text = (ROOT / "MEDGEMMA.md").read_text(encoding="utf-8")
    for claim in ("0.85+", "0.92+", "0.35+", "3.4GB", "11GB", "GemmaForCausalLM`", "Fully Integrated", "T4 supports"):
        assert claim not in text, claim
