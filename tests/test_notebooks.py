"""Every shipped notebook is clean, and runs as it is shipped, with tiny models and generated data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mllm.config.hardware import CHECKOUT
from mllm.config.reading import read_config

ABSENT = "{0} is not installed: pip install -e '.[notebook]'"
NOTEBOOK = CHECKOUT / "scripts" / "notebooks" / "3ncore.ipynb"


@pytest.fixture
def notebook() -> Any:
    nbformat = pytest.importorskip("nbformat", reason=ABSENT.format("nbformat"))
    read = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(read)
    return read


def printed(cell: Any) -> str:
    """Return the text that a cell printed."""
    return "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")


def outputs_of(cell: Any, kind: str) -> list[Any]:
    """Return the outputs of a cell with the MIME type `kind`."""
    return [output["data"][kind] for output in cell["outputs"] if kind in output.get("data", {})]


def test_the_notebook_has_no_outputs(notebook):
    cells = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    assert max(len(cell["source"].splitlines()) for cell in cells) < 15, "logic belongs into mllm/pipeline/notebook.py"
    (parameters,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    values: dict[str, Any] = {}
    exec(parameters["source"], values)
    assert (CHECKOUT / values["BASE"]).is_file()


def test_the_notebook_runs(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason=ABSENT.format("nbclient"))
    for package in ("ipywidgets", "ipykernel"):
        pytest.importorskip(package, reason=ABSENT.format(package))
    import nbformat

    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = {cell["id"]: cell for cell in notebook.cells}

    def before(name: str, source: str) -> None:
        notebook.cells.insert(notebook.cells.index(cells[name]), nbformat.v4.new_code_cell(source))

    before("start", f"TINY, FOLDER = True, {str(tmp_path)!r}")
    before("config", "sliders['epochs'].value, sliders['learning_rate'].value, sliders['lora_r'].value = 2, 1e-3, 4")
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()

    assert len(outputs_of(cells["sliders"], "application/vnd.jupyter.widget-view+json")) == 6
    monkeypatch.chdir(tmp_path)
    config = read_config("exp/3ncore.py")
    assert printed(cells["config"]).strip() == Path("exp/3ncore.py").read_text().strip()
    assert (config.training_args["num_train_epochs"], config.model_args.lora_r) == (2, 4)
    run = Path("exp/3ncore/latest").resolve()
    assert read_config(run / "config.py").model_args.lora_r == 4
    output, rows = printed(cells["run"]), json.loads((run / "training_log.json").read_text())["rows"]
    last = max(row["step"] for row in rows)
    assert [f"step {step:>5}  loss " in output for step in range(1, last + 2)] == [True] * last + [False]
    assert "validation loss" in output and "held-out measures" in output and (run / "adapter").is_dir()
    assert len(outputs_of(cells["pictures"], "image/png")) == len(list(run.rglob("*.png"))) >= 1
    assert "EF" in printed(cells["figures"])
