"""Every shipped notebook is clean, and runs as it is shipped, with tiny models and generated data."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm.config.hardware import CHECKOUT
from mllm.config.reading import read_config
from mllm.tiny.checkpoints import write_tiny

ABSENT = "{0} is not installed: pip install -e '.[notebook]'"
FOLDER = CHECKOUT / "scripts" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
Execute = Callable[[str, Mapping[str, str]], dict[str, Any]]


def read(path: Path) -> Any:
    nbformat = pytest.importorskip("nbformat", reason=ABSENT.format("nbformat"))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def printed(cell: Any) -> str:
    """Return the text that a cell printed."""
    return "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")


def outputs_of(cell: Any, kind: str) -> list[Any]:
    """Return the outputs of a cell with the MIME type `kind`."""
    return [output["data"][kind] for output in cell["outputs"] if kind in output.get("data", {})]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """A function that runs a notebook in `tmp_path` with tiny models, and returns its cells by their ids.

    Its second argument is code that is run before the cell with an id.
    """
    nbclient = pytest.importorskip("nbclient", reason=ABSENT.format("nbclient"))
    for package in ("ipywidgets", "ipykernel"):
        pytest.importorskip(package, reason=ABSENT.format(package))
    import nbformat

    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "config").symlink_to(CHECKOUT / "config")
    monkeypatch.chdir(tmp_path)

    def run(name: str, before: Mapping[str, str]) -> dict[str, Any]:
        notebook = read(FOLDER / name)
        cells = {cell["id"]: cell for cell in notebook.cells}
        for place, source in {"start": f"TINY, FOLDER = True, {str(tmp_path)!r}", **before}.items():
            notebook.cells.insert(notebook.cells.index(cells[place]), nbformat.v4.new_code_cell(source))
        resources = {"metadata": {"path": str(FOLDER)}}
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
        return cells

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs_and_opens_with_its_cost(path):
    first, *_ = read(path).cells
    assert "**Cost** according to `mllm plan`" in first["source"], "a notebook opens with its time and memory"
    cells = [cell for cell in read(path).cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    assert max(len(cell["source"].splitlines()) for cell in cells) < 16, "logic belongs into mllm/run/notebook.py"
    (parameters,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    values: dict[str, Any] = {}
    exec(parameters["source"], values)
    assert not values["TINY"]
    assert all((CHECKOUT / value).is_file() for name, value in values.items() if name == "BASE")


def test_the_notebook_of_3ncore_runs(execute):
    sliders = "sliders['epochs'].value, sliders['learning_rate'].value, sliders['lora_r'].value = 2, 1e-3, 4"
    cells = execute("3ncore.ipynb", {"config": sliders})

    assert len(outputs_of(cells["sliders"], "application/vnd.jupyter.widget-view+json")) == 6
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


def test_the_notebook_about_first_aid_writes_a_file_that_llama_cpp_runs(execute):
    """The plan is of four layers; the run has the 21 layers of `--tiny`, which llama.cpp requires."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed: pip install -e '.[parity]'")
    write_tiny("gemma3n", Path("ckpt/tiny-gemma3n-deep"))
    cells = execute("first_aid_gguf.ipynb", {"run": "import shutil; shutil.rmtree('ckpt')"})

    run = Path("exp/gemma3n_medrescue_t4/latest").resolve()
    accuracy = json.loads((run / "metrics.json").read_text())["figures"]["accuracy"]
    assert f"{accuracy['samples']}" in printed(cells["figures"]) and "accuracy" in printed(cells["figures"])
    folder = Path("first-aid/gguf")
    assert (folder / "first-aid.gguf").read_bytes()[:4] == b"GGUF"
    assert "memory at the peak" in printed(cells["plan"])
    assert "FROM ./first-aid.gguf" in (folder / "Modelfile").read_text()
    assert printed(cells["answer"]).strip()


def test_the_notebook_about_images_trains_on_a_folder_and_asks_its_adapter(execute, tmp_path):
    images = tmp_path / "mydata" / "images"
    images.mkdir(parents=True)
    rows = []
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{number}.png")
        rows.append(
            {"image": f"{number}.png", "question": "Which?", "answer": f"{number % 2}", "patient": f"p{number}"}
        )
    (tmp_path / "mydata" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = execute("medgemma_lora.ipynb", {})

    run = Path("exp/my_run/latest").resolve()
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert "rows were read" in printed(cells["check"])
    assert "memory at the peak" in printed(cells["plan"])
    assert printed(cells["answer"]).splitlines()[-1] == "right answer: 0"
    (shown,) = outputs_of(cells["answer"], "text/html")
    assert "data:image/jpeg;base64," in shown
    assert "token_f1" in printed(cells["figures"])
    (page,) = outputs_of(cells["report"], "text/html")
    assert page.startswith("<div><iframe srcdoc=") and "&lt;html" in page and "<html" not in page
