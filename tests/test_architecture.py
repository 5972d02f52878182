"""Rules of the source code: allowed imports, lengths of files, and forbidden constructs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mllm.family import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "mllm").rglob("*.py"))
CONFIGS = sorted((ROOT / "config").rglob("*.py"))
NOUNS = {
    *(
        "structures",
        "protocols",
        "contents",
        "registry",
        "errors",
        "files",
        "options",
        "family",
        "signatures",
        "static_source",
    ),
    *("run_files", "private_messages", "packages", "literal_text", "parsing", "coco_masks"),
    *("supervision", "shared_rows", "memory"),
}
PARTS = {"dataset", "models", "objectives", "metrics"}
ALLOWED = {
    **dict.fromkeys(NOUNS, NOUNS),
    "config": NOUNS | {"config"},
    **{part: NOUNS | {part} for part in PARTS},
    "models": NOUNS | {"models", "tiny"},
    "engine": NOUNS | {"engine", "models", "objectives", "metrics"},
    "export": NOUNS | {"export", "config"} | PARTS,
    "tiny": NOUNS | {"tiny"},
    "report": NOUNS | {"report", "config", "engine", "export"} | PARTS,
    "predict": NOUNS | {"predict", "report", "config", "engine", "export"} | PARTS,
    "serve": NOUNS | {"serve", "predict", "report", "config", "engine", "export"} | PARTS,
    "run": NOUNS | {"run", "predict", "report", "config", "engine", "export", "tiny"} | PARTS,
    "planning": NOUNS | {"planning", "run", "predict", "report", "config", "engine", "export", "tiny"} | PARTS,
    "ui": NOUNS | {"ui", "serve", "run", "predict", "report", "config", "engine", "export"} | PARTS,
    "pipeline": NOUNS
    | {"pipeline", "planning", "ui", "run", "serve", "predict", "report", "config", "engine", "export", "tiny"}
    | PARTS,
}
FAMILY_FILES = {"family.py", "options.py", "rules.py", "load.py", "vision.py", "ncore_log.py"}
"""Files of a model family's folder that read configs."""
TOP_LEVEL = {"mllm", "config", "scripts", "ckpt", "tests", "setup.py", "README.md", "MEDGEMMA.md", "LICENSE"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def teardown_module() -> None:
    """Free the syntax trees, which would make each garbage collection of later tests slower."""
    tree_of.cache_clear()


def part_of(path: Path) -> str:
    """Return 'models' for `mllm/models/x.py`, 'errors' for `mllm/errors.py` and '' for `mllm/__init__.py`."""
    inner = path.relative_to(ROOT / "mllm").with_suffix("").parts
    return "" if inner[0] == "__init__" else inner[0]


def imports_of(path: Path) -> Iterator[str]:
    """Return the absolute names of all imported modules of a file, also inside functions and under TYPE_CHECKING."""
    package = ["mllm", *path.relative_to(ROOT / "mllm").parent.parts]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parent, *([node.module] if node.module else [])])
            if module == "mllm":
                yield from (f"mllm.{alias.name}" for alias in node.names)
            else:
                yield module


def calls_of(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))


def at(path: Path, node: ast.AST) -> str:
    return f"{name_of(path)}:{node.lineno}"  # type: ignore[attr-defined]


def test_every_part_of_the_package_is_checked() -> None:
    assert len(FILES) > 20
    assert {part_of(path) for path in FILES} - {""} <= set(ALLOWED), "a new part needs its line in ALLOWED"


def test_layers() -> None:
    wrong = []
    for path in FILES:
        part = part_of(path)
        allowed = set(ALLOWED[part]) if part else {"predict"}
        if path.name == "builder.py" or path.name.startswith("build_") or path.name in FAMILY_FILES:
            allowed.add("config")
        for module in imports_of(path):
            top, _, rest = module.partition(".")
            if top == "mllm" and rest and rest.split(".")[0] not in allowed:
                wrong.append(f"{name_of(path)} imports {module}")
    assert not wrong


def test_scripts_import_names_that_exist() -> None:
    """Many scripts run for minutes, so no test starts them."""
    missing = []
    for script in sorted((ROOT / "scripts").rglob("*.py")):
        for node in ast.walk(tree_of(script)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mllm":
                path = ROOT.joinpath(*str(node.module).split("."))
                file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                names = names_of(file) | ({child.stem for child in path.iterdir()} if path.is_dir() else set())
                missing += [f"{name_of(script)}: {node.module}.{a.name}" for a in node.names if a.name not in names]
    assert not missing


def names_of(file: Path) -> set[str]:
    """Return the names that a module defines or imports; none if the file does not exist."""
    names = set[str]()
    for node in ast.walk(tree_of(file)) if file.is_file() else ():
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_nothing_imports_a_command() -> None:
    """Modules of `mllm.pipeline` with a `main` are commands; shared code is in modules without one."""
    pipeline = [path for path in FILES if part_of(path) == "pipeline"]
    commands = {
        f"mllm.pipeline.{path.stem}"
        for path in pipeline
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree_of(path).body)
    }
    assert {"mllm.pipeline.cli", "mllm.pipeline.finetune", "mllm.pipeline.show"} <= commands
    wrong = [f"{name_of(path)} imports {name}" for path in FILES for name in imports_of(path) if name in commands]
    # `from mllm.pipeline import merge` names the package only.
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module == "mllm.pipeline":
                wrong += [f"{name_of(path)} imports mllm.pipeline.{alias.name}" for alias in node.names]
    assert not wrong


def test_mmengine_is_imported_in_two_files() -> None:
    users = {name_of(path) for path in FILES for module in imports_of(path) if module.split(".")[0] == "mmengine"}
    assert users == {"mllm/registry.py", "mllm/config/merging.py"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_and_have_a_docstring(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert path.stat().st_size == 0 or ast.get_docstring(tree_of(path)), "the module's docstring is missing"


def public_without_docstring(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        marks = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
        if not ast.get_docstring(node) and not marks & {"override", "overload", "setter"}:
            yield f"{prefix}{node.name} (line {node.lineno})"
        if isinstance(node, ast.ClassDef):
            yield from public_without_docstring(node.body, f"{node.name}.")


def test_public_names_have_docstrings() -> None:
    silent = [f"{name_of(path)}: {name}" for path in FILES for name in public_without_docstring(tree_of(path).body)]
    assert not silent


QUESTION_WORDS = ("What", "Where", "Whether", "How", "Who", "Which", "Why", "The same")


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    """Modules, classes, functions and attributes; see the writing style in mllm/README.md."""
    violations = [
        f"{name_of(path)}:{node.lineno}: {node.value.splitlines()[0]}"
        for folder in ("mllm", "scripts", "tests", "config")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in docstrings_of(tree_of(path))
        if isinstance(node.value, str) and re.match(rf"\s*({'|'.join(QUESTION_WORDS)})\b", node.value)
    ]
    assert not violations


def test_attributes_are_not_probed() -> None:
    """`hasattr`, and `getattr` with a fixed name or a default, hide an unknown type."""
    violations = []
    for path in FILES:
        for call in calls_of(path):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name == "hasattr" or (
                name == "getattr" and (len(call.args) > 2 or isinstance(call.args[1], ast.Constant))
            ):
                violations.append(at(path, call))
    assert not violations


def test_log_records_about_data_have_literal_texts() -> None:
    """A private run leaves out the arguments of these records and keeps their texts."""
    violations = [
        at(path, call)
        for path in FILES
        if part_of(path) == "dataset"
        for call in calls_of(path)
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "logger"
        if not (isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str))
    ]
    assert not violations


def test_workers_of_every_loader_rewrite_their_messages_in_a_private_run() -> None:
    """A worker that is not forked does not know that the run is private."""
    loaders = [call for path in FILES for call in calls_of(path) if ast.unparse(call.func) == "DataLoader"]
    setups = [keyword for call in loaders for keyword in call.keywords if keyword.arg == "worker_init_fn"]
    assert loaders and [ast.unparse(setup.value) for setup in setups] == ["worker_setup()"] * len(loaders)


def test_no_exception_is_ignored() -> None:
    """No bare `except`, and no `except Exception` that never raises."""
    violations = []
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if node.type is None or (broad and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))):
                violations.append(at(path, node))
    assert not violations


def docstrings_of(tree: ast.Module) -> set[ast.AST]:
    """Return the strings that are statements: docstrings of modules, classes, functions and attributes."""
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def test_a_type_is_named_only_in_its_family() -> None:
    """A model type is a literal only in the folder of its family and in the builder that registers it."""
    violations = []
    for family in FAMILIES:
        quoted = re.compile(rf"""^{family.type}$|['"]{family.type}['"]""")
        folder = Path(family.load.path.partition(":")[0].replace(".", "/")).parent
        for path in FILES:
            text = path.read_text(encoding="utf-8")
            registers = f'MODELS.register_module("{family.type}")' in text
            if family.type not in text or registers or path.is_relative_to(ROOT / folder):
                continue
            tree = tree_of(path)
            violations += [
                at(path, node)
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and quoted.search(node.value)
                if node not in docstrings_of(tree)
            ]
    assert not violations


def test_the_records_of_families_import_no_heavy_package() -> None:
    script = "import sys, mllm.models.families; print(*({'torch', 'transformers', 'timm'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not result.stdout.strip()


def test_no_code_assumes_a_device() -> None:
    violations = [
        at(path, call)
        for path in FILES
        for call in calls_of(path)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "cuda"
    ]
    assert not violations


def test_pickles_are_loaded_as_weights_only() -> None:
    violations = []
    for path in FILES:
        for call in calls_of(path):
            safe = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}.get("weights_only")
            if safe not in (None, "True") or (ast.unparse(call.func) == "torch.load" and safe is None):
                violations.append(at(path, call))
    assert not violations


def test_widths_come_from_checkpoints() -> None:
    """4096 is the width of LLaMA-7B and the number of patches of Gemma 3, so it would fit only one model."""
    violations = [
        at(path, node)
        for path in FILES
        if part_of(path) != "dataset"  # a 12-bit image has as many gray levels
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value == 4096
    ]
    assert not violations


def test_there_are_no_to_do_comments() -> None:
    later = ("TO" + "DO", "FIX" + "ME", "X" * 3)
    violations = [
        f"{name_of(path)}: {word}"
        for path in FILES + CONFIGS
        for word in later
        if word in path.read_text(encoding="utf-8")
    ]
    violations += [
        at(path, node)
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc)
    ]
    assert not violations


def is_value(node: ast.expr) -> bool:
    """Return True for literals, names, and `dict(...)` of them, which compute nothing."""
    if isinstance(node, ast.Call):
        return (
            ast.unparse(node.func) == "dict" and not node.args and all(is_value(word.value) for word in node.keywords)
        )
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return all(is_value(element) for element in node.elts)
    if isinstance(node, ast.Dict):
        return all(key is not None and is_value(key) for key in node.keys) and all(map(is_value, node.values))
    if isinstance(node, ast.UnaryOp):
        return is_value(node.operand)
    return isinstance(node, ast.Constant | ast.Name)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_is_short_and_has_no_logic(path: Path) -> None:
    docstring, *assignments = tree_of(path).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    for node in assignments:
        assert isinstance(node, ast.Assign), f"line {node.lineno} is no assignment"
        assert is_value(node.value), f"line {node.lineno} computes"


def test_the_top_level_is_fixed() -> None:
    """Only files in git are checked, if there are any: a user may have other configs and data in the checkout."""
    git = shutil.which("git")
    listing = [git, "-C", str(ROOT), "ls-files"] if git and (ROOT / ".git").exists() else ["true"]
    tracked = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {name for name in (path.split("/")[0] for path in tracked) if not name.startswith(".")} <= TOP_LEVEL
    assert {path.name for path in ROOT.iterdir()} >= TOP_LEVEL


def test_there_are_no_paths_of_a_single_machine() -> None:
    places = tuple("/" + folder + "/" for folder in ("work", "root"))
    texts = [ROOT / name for name in ("setup.py", "README.md", "MEDGEMMA.md", ".ci/run")]
    texts += [path for folder in ("mllm", "config", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*"))]
    violations = []
    for path in texts:
        if path.is_file() and path.suffix in ("", ".py", ".sh", ".md", ".txt", ".json"):
            text = path.read_text(encoding="utf-8")
            violations += [f"{name_of(path)}: {place}" for place in places if place in text]
    assert not violations
