"""Tests of report.html: figures, escaping, private runs, absent and damaged files, size, and structure of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm.engine.evaluation import mark_fields
from mllm.engine.predictions import answers_of
from mllm.export.facts import Facts, Split, write_facts, write_metrics
from mllm.metrics.scoring import Scorer
from mllm.pipeline.command import run_command
from mllm.pipeline.report import main
from mllm.predict.writer import write_predictions
from mllm.registry import METRICS
from mllm.structures import Answer, Mark

CONFIG = """
model_args = dict(type="medgemma", model_name_or_path="ckpt/tiny-medgemma")
objectives = dict(next_token=dict(type="NextToken"))
data_args = dict(
    train=dict(type="VQADataset", data_path="rows.jsonl"), test=dict(type="VQADataset", data_path="rows.jsonl")
)
"""
FACTS = Facts(
    "ckpt/tiny-medgemma",
    {"type": "medgemma"},
    {"train": Split("VQADataset", 4), "test": Split("VQADataset", 4)},
    parameters={
        "vision": {"tensors": 0, "trainable": 0, "all": 50},
        "language": {"tensors": 2, "trainable": 5, "all": 50},
    },
    updates=3,
)
RECORD = {
    "guarantee": "(1.5, 1e-05)-differentially private",
    "epsilon_spent": 1.49987654,
    "delta": 1e-5,
    "unit": "patient",
}
Run = Callable[..., "Page"]


class Page(HTMLParser):
    """Elements, tables and texts of a page."""

    VOID = {"meta", "img", "input", "line", "circle", "polyline", "br", "wbr", "link"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, dict[str, list[str | None]]] = {}
        """Caption -> heading of a row -> values of its `data` elements."""
        self._texts: list[str] = []
        self._open: list[str] = []
        self._caption = self._row = ""
        self.feed(html)
        assert not self._open, f"elements are not closed: {self._open}"
        self.text = "".join(self._texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag == "table":
            self._caption = ""
        if tag == "tr":
            self._row = ""
        if tag == "data":
            self.tables.setdefault(self._caption, {}).setdefault(self._row, []).append(values["value"])
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self._texts.append(data)
        if self._open and self._open[-1] == "caption":
            self._caption += data
        if self._open[-2:] == ["tr", "th"]:
            self._row += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a tag."""
        return [attributes for name, attributes in self.elements if name == tag]


def vqa_row(number: int, prediction: str, reference: str = "yes", question: str = "Is it benign?") -> dict[str, Any]:
    return {
        "source": f"rows.jsonl, line {number + 1}",
        "images": [f"{number % 4}.png"],
        "patient": f"patient-{number}",
        "question": f"<image> {question}",
        "reference": reference,
        "prediction": prediction,
        "tokens": 3,
    }


@pytest.fixture
def write_run(folder) -> Run:
    """A function that writes a run folder with predictions and its figures, runs the command, and returns the page."""

    def write(
        rows: list[dict[str, Any]],
        *metrics: str,
        facts: Facts = FACTS,
        change: Callable[[Path], Any] = str,
        size: tuple[int, int] = (80, 100),
        strata: dict[str, Any] | None = None,
    ) -> Page:
        run = Path("run")
        run.mkdir(exist_ok=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"{number}.png")
        with open("rows.jsonl", "w") as file:
            for number, row in enumerate(rows):
                values = {"image": f"{number % 4}.png", "question": "Why?", "answer": row["reference"]}
                file.write(json.dumps({**values, "patient": str(number)}) + "\n")
        scorer = Scorer({name: METRICS.find(name) for name in metrics})
        for row in rows:
            scorer.add(*answers_of(row))
        facts = replace(facts, figures=scorer.figures())
        write_facts(run, facts)
        write_metrics(run, facts, strata or {})
        write_predictions(run / "predictions.jsonl", rows)
        (run / "config.py").write_text(CONFIG)
        log = [{"step": step, "loss": 1 / step, "seconds": step, "peak_memory_gb": 1.0} for step in (1, 2, 3)]
        (run / "training_log.json").write_text(json.dumps({"rows": [*log, {"step": 3, "eval_loss": 0.25}]}))
        (run / "data_summary.json").write_text(json.dumps({"train": {"samples": 4, "patients": 4}}))
        (run / "environment.json").write_text(json.dumps({"python": "3.11", "hardware": {"name": "CPU"}}))
        (run / "warnings.json").write_text(json.dumps({"warnings": ["a warning of the run"]}))
        change(run)
        assert run_command(main, [str(run), "--debug"]) == 0
        return Page((run / "report.html").read_text())

    return write


FOUR = [vqa_row(0, "yes"), vqa_row(1, "no"), vqa_row(2, "no", "no"), vqa_row(3, "maybe", "no")]


def test_figures_equal_those_of_metrics_json(write_run):
    page = write_run(FOUR, "accuracy", "choice", "token_f1", "mae")
    figures = json.loads(Path("run/metrics.json").read_text())["figures"]
    assert figures["accuracy"]["accuracy"] == 0.5 and figures["mae"]["mae"] is None
    for metric, values in figures.items():
        for name, value in values.items():
            if not name.endswith(("_ci_low", "_ci_high")):
                limits = [values[name + end] for end in ("_ci_low", "_ci_high") if name + end in values]
                exact = [number for number in (value, *limits) if number is not None]
                assert [float(text) for text in page.tables[metric].get(name, [])] == exact


def test_figures_by_stratum_and_before_the_training_are_shown(write_run):
    part = {"samples": 2, "patients": 2, "small": False, "figures": {"accuracy": {"accuracy": 0.1, "samples": 2}}}

    def change(run: Path) -> None:
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["untrained"] = {"accuracy": {"accuracy": 0.25, "samples": 4}}
        metrics["differences"] = {"accuracy": {"accuracy": 0.25, "accuracy_ci_low": -0.5, "accuracy_ci_high": 0.75}}
        (run / "metrics.json").write_text(json.dumps(metrics))

    page = write_run(FOUR, "accuracy", change=change, strata={"sex": {"<F>": part}})
    assert page.tables["By sex"]["<F>"] == ["2", "2", "0.1"]
    assert page.tables["accuracy, change"]["accuracy"] == ["0.25", "0.5", "0.25", "-0.5", "0.75"]


def test_the_confusion_matrix_counts_the_answers(write_run):
    page = write_run(FOUR, "accuracy")
    assert page.tables[""]["no"] == ["1", "0", "1"]  # no, yes, other answers
    assert page.tables[""]["yes"] == ["1", "1", "0"]


def test_texts_of_the_data_are_escaped(write_run):
    attack = '<script>alert("1")</script><img src=x onerror=alert(2)>'
    rows = [vqa_row(0, attack, attack, attack), vqa_row(1, "no")]
    rows[0]["patient"] = attack
    page = write_run(rows, "accuracy")
    assert len(page.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert page.text.count(attack) >= 4


def test_the_page_loads_nothing_and_can_be_used_by_keyboard_and_screen_reader(write_run):
    page = write_run(FOUR, "accuracy")
    assert not re.search(r"""(?:src|href)=["'](?!data:image/|#)|@import|url\(""", page.html)
    assert page.all("img") and all(image["alt"] for image in page.all("img"))
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in page.all("svg"))
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    labels = {label.get("for") for label in page.all("label")}
    assert all(control.get("id") in labels or control["type"] == "radio" for control in page.all("input"))
    targets = {link["href"] for link in page.all("a")}
    assert targets == {f"#{name}" for name in identities} & targets


def test_pictures_have_their_size_and_are_there_from_the_start(write_run):
    """A picture that is loaded late moves the sections after it, so a link to a section would end elsewhere.

    Chromium leaves lazy pictures and cards with `content-visibility` empty in a screenshot of the whole page.
    """
    page = write_run([vqa_row(0, "yes")], "accuracy", size=(200, 640))
    assert {(image["width"], image["height"]) for image in page.all("img")} == {("320", "100")}
    assert 'loading="lazy"' not in page.html and "content-visibility" not in page.html


def test_equal_detections_are_not_called_best_and_worst(write_run):
    """Three groups of examples with the same score say nothing that the gallery does not say."""

    def row(number: int, *, left: float) -> dict[str, Any]:
        true, predicted = (Answer("", (Mark(box=(x, 5.0, x + 20.0, 40.0)),)) for x in (5.0, left))
        fields = mark_fields(predicted) | mark_fields(true, "reference_")
        return vqa_row(number, "", "") | fields | {"reference": "<box>"}

    same = write_run([row(number, left=50.0) for number in range(3)], "rec")
    assert "Examples with boxes" not in same.text and "Best" not in same.text
    unlike = write_run([row(number, left=5.0 + 10 * number) for number in range(3)], "rec")
    assert "Best: mean IoU of the boxes: 1.00" in unlike.text and "Worst: mean IoU of the boxes: 0.00" in unlike.text


def test_each_rule_of_a_right_answer_names_its_metric(write_run):
    rows = [
        vqa_row(0, "A", "A") | {"task": "classification", "question": "Which? A: x, B: y"},
        vqa_row(1, "3", "4") | {"task": "counting"},
    ]
    page = write_run(rows, "balanced_accuracy", "mae")
    assert "balanced_accuracy: an answer is right if its class is that of the reference." in page.text
    assert "mae: a number is right if its error is at most 0.4, 10 % of the range." in page.text


def test_the_worst_predictions_are_first(write_run):
    rows = [vqa_row(0, "12", "12"), vqa_row(1, "30", "10"), vqa_row(2, "11", "10"), vqa_row(3, "words", "20")]
    page = write_run(rows, "mae")
    verdicts = [card["data-verdict"] for card in page.all("article")]
    assert verdicts == ["wrong", "wrong", "right", "right"]
    assert "2 right, 2 wrong" in page.text
    assert [int(n) for n in re.findall(r"(\d): rows.jsonl, line", page.text)] in ([2, 4, 3, 1], [4, 2, 3, 1])


def test_marks_of_reference_and_prediction_have_different_colors(write_run):
    row = vqa_row(0, "", "")
    true = Answer("", (Mark(box=(5.0, 5.0, 40.0, 40.0)),))
    predicted = Answer("", (Mark(box=(60.0, 20.0, 90.0, 70.0)),))
    row |= mark_fields(predicted) | mark_fields(true, "reference_")
    page = write_run([row | {"reference": "<box>"}], "rec")
    assert "1 marks" not in page.html and "with 2 marks" in page.html and "reference (T1" in page.text
    assert page.tables[""]["all"] == ["1", "0", "1", "1", "0.0", "0.0"]  # samples, found, missed, additional, rates


def test_boxes_that_a_text_lists_in_pixels_are_drawn(write_run):
    """Answers of detection and instance detection of FLARE are texts, without marks."""
    rows = [
        vqa_row(0, "[60, 20, 90, 70]", "[5, 5, 40, 40]") | {"task": "detection"},
        vqa_row(1, "{}", '{"1": [[5, 5, 40, 40], [50, 5, 70, 40]], "2": [[5, 50, 40, 70]]}')
        | {"task": "instance_detection"},
        vqa_row(2, "[60, 20, 90, 70, 3]", "none") | {"task": "detection"},
    ]
    page = write_run(rows, "detection_f1", "instance_f1")
    gallery = [image["alt"] for image in page.all("img") if image["alt"].startswith("image")]
    assert sorted(text for text in gallery if "mark" in text) == ["image with 2 marks", "image with 3 marks"]
    assert "reference (T1" in page.text


def test_a_private_run_shows_no_sample(write_run):
    facts = replace(FACTS, privacy=RECORD, memory={"planned": 3_870_000_000, "measured": 3_500_000_000})
    page = write_run(FOUR, "accuracy", facts=facts)
    assert "3.87 GB planned for samples of the greatest length, 3.50 GB measured" in page.text
    assert not page.all("img") and not page.all("article")
    for text in ("benign", "maybe", "patient-1", "rows.jsonl", "line 1"):
        assert text not in page.html
    assert "1.49987654" in page.text and "(1.5, 1e-05)-differentially private" in page.text
    assert page.tables["accuracy"]["accuracy"][0] == "0.5"


@pytest.mark.parametrize("sign", ["privacy.json", "config.py", "settings"])
def test_a_run_is_private_if_any_of_its_files_says_so(write_run, sign):
    def change(run: Path) -> None:
        (run / "facts.json").unlink()
        if sign == "privacy.json":
            (run / sign).write_text("damaged")
        elif sign == "config.py":
            (run / sign).write_text(CONFIG + "privacy_args = dict(target_epsilon=3.0)\n")
        else:
            metrics = json.loads((run / "metrics.json").read_text())
            (run / "metrics.json").write_text(json.dumps({**metrics, "settings": {"private": True, "split": "test"}}))

    page = write_run(FOUR, "accuracy", change=change)
    assert "benign" not in page.html and not page.all("img")


@pytest.mark.parametrize("how", ["absent", "damaged"])
@pytest.mark.parametrize(
    "name",
    [
        *("facts.json", "metrics.json", "predictions.jsonl", "training_log.json", "data_summary.json"),
        *("environment.json", "config.py", "warnings.json"),
    ],
)
def test_a_missing_file_is_named_and_the_rest_is_shown(write_run, name, how):
    def change(run: Path) -> None:
        (run / name).unlink() if how == "absent" else (run / name).write_bytes(b'{"rows": \xff')

    page = write_run(FOUR, "accuracy", change=change)
    assert name in page.text
    assert "Environment" in page.text and ("is damaged and left out" in page.text) == (how == "damaged")


def test_a_run_without_a_test_split_names_no_absent_results(write_run):
    facts = replace(FACTS, data={"train": FACTS.data["train"]})

    def change(run: Path) -> None:
        for name in ("metrics.json", "predictions.jsonl"):
            (run / name).unlink()

    page = write_run(FOUR, "accuracy", facts=facts, change=change)
    assert "The config has no test split" in page.text and "is absent" not in page.text


def test_an_evaluation_by_a_server_names_the_server(write_run):
    def change(run: Path) -> None:
        metrics = json.loads((run / "metrics.json").read_text())
        server = {"address": "http://localhost:8000/v1", "model": "served"}
        settings = {"config": str(run / "config.py"), "split": "test"}
        (run / "metrics.json").write_text(json.dumps({**metrics, "server": server, "settings": settings}))

    page = write_run(FOUR, "accuracy", change=change)
    assert "served on the server http://localhost:8000/v1" in page.text and page.all("img")


def test_an_evaluation_of_a_tiny_model_says_that_its_figures_mean_nothing(write_run):
    def change(run: Path) -> None:
        values = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps(values | {"settings": {"split": "test"}, "model": model}))
        (run / "facts.json").unlink()

    model = {"type": "medgemma", "model_name_or_path": "ckpt/tiny-medgemma"}
    assert "The base is a tiny random model" in write_run(FOUR, "accuracy", change=change).text
    model["model_name_or_path"] = "ckpt/medgemma-4b-it"
    assert "tiny random model" not in write_run(FOUR, "accuracy", change=change).text


def test_pictures_are_left_out_if_the_data_are_gone(write_run):
    page = write_run(FOUR, "accuracy", change=lambda run: Path("rows.jsonl").unlink())
    assert not page.all("img") and len(page.all("article")) == 4
    assert "There are no pictures, because the data cannot be read" in page.text


def test_a_report_of_a_thousand_predictions_is_small_and_says_what_it_leaves_out(write_run):
    rows = [vqa_row(number, "yes" if number % 3 else "no") for number in range(1001)]
    page = write_run(rows, "accuracy", size=(320, 256))
    assert len(page.html.encode()) < 10e6
    assert len(page.all("article")) == 1000
    verdicts = {card["data-verdict"] for card in page.all("article")}
    assert verdicts == {"right", "wrong"}
    assert "The 1,000 worst of 1,001 predictions are shown" in page.text
    assert f"{len(page.all('img')) - 6} of the 1,000 cards have pictures" in page.text  # 6 are training samples


@pytest.mark.parametrize("kind", ["absent", "file", "empty", "damaged"])
def test_a_folder_without_results_is_refused_with_one_sentence(folder, capsys, kind):
    path = Path("run")
    if kind == "file":
        path.write_text("")
    elif kind != "absent":
        path.mkdir()
    if kind == "damaged":
        (path / "facts.json").write_text("[")
    assert run_command(main, [str(path)]) == 2
    message = capsys.readouterr().err.strip()
    expected = {"absent": "is not a folder", "file": "is not a folder", "empty": "has none of", "damaged": "is damaged"}
    assert expected[kind] in message and "\n" not in message and not (path / "report.html").exists()
