"""Map of the package in mllm/README.md: one line per file, from the module docstrings.

python scripts/code_map.py    writes the map; tests/test_readme.py checks that it is current
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "mllm" / "README.md"
START, END = "<!-- files: written by scripts/code_map.py -->\n", "<!-- end of files -->\n"
WIDTH = 150
"""Characters of a line; longer sentences are cut at a word."""


def summary_of(path: Path) -> str:
    """Return the first sentence of a module docstring on one line, or '' without one."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def lines_of(folder: Path, indent: int = 0) -> list[str]:
    """Return the lines of a folder: its files, then its subfolders."""
    package = folder / "__init__.py"
    lines = [f"{'  ' * indent}{folder.name}/".ljust(30) + (summary_of(package) if package.is_file() else "")]
    files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    lines += [f"{'  ' * (indent + 1)}{path.name}".ljust(30) + summary_of(path) for path in files]
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir() and any(path.rglob("*.py"))):
        lines += lines_of(subfolder, indent + 1)
    return [line.rstrip() if len(line) <= WIDTH else line[:WIDTH].rpartition(" ")[0] + " ..." for line in lines]


def with_map(text: str) -> str:
    """Return the README with a current map."""
    before, _, after = text.partition(START)
    tree = "\n".join(lines_of(ROOT / "mllm"))
    return f"{before}{START}\n```text\n{tree}\n```\n\n{END}{after.partition(END)[2]}"


if __name__ == "__main__":
    README.write_text(with_map(README.read_text(encoding="utf-8")), encoding="utf-8")
