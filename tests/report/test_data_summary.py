"""Summary of the data of generated videos, and histograms of measures."""

import json
import logging

import numpy as np
import pytest
from echo_files import write_echonet
from PIL import Image

from mllm.dataset.builder import build_dataset
from mllm.dataset.checking import check_splits
from mllm.report.data_summary import describe_data, draw_agreement


def test_the_summary_and_the_histograms_are_in_the_runs_folder(tmp_path, caplog):
    patients = write_echonet(tmp_path / "data", {"TRAIN": 5, "TEST": 2}, frames=30)
    run = tmp_path / "run"
    run.mkdir()

    def split(name):
        return build_dataset(dict(type="EchoNetDataset", data_path=str(tmp_path / "data"), split=name))

    with caplog.at_level(logging.INFO):
        describe_data(check_splits({"train": split("TRAIN"), "test": split("TEST")}), run)
    assert sorted(path.name for path in run.iterdir()) == ["data_summary.json", "measures.png"]
    summary = json.loads((run / "data_summary.json").read_text())
    efs = [patient.heart.ef for patient in patients]
    assert summary["train"]["measures"]["EF"]["mean"] == pytest.approx(np.mean(efs[:5]))
    assert summary["test"]["samples"] == 2
    assert summary["train"]["sources"][0]["ED is the larger traced area"]["index order disagrees"] == 3
    assert f"train: EF {np.mean(efs[:5]):.1f} +- {np.std(efs[:5]):.1f}" in caplog.text


def test_data_without_measures_has_no_histogram(tmp_path):
    describe_data(check_splits({"train": build_dataset(dict(type="DummyDataset", size=3))}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data_summary.json"]
    assert json.loads((tmp_path / "data_summary.json").read_text()) == {
        "train": {
            "samples": 3,
            "patients": 3,
            "samples without a patient": 0,
            "skipped": 0,
            "modalities": {"CT": 3},
            "sources": [],
            "measures": {},
        }
    }


def test_measures_of_heads_and_of_texts_are_drawn(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("mllm.report.data_summary.plot_agreement", lambda *all_of_it: calls.append(all_of_it))
    rows = [
        {
            "reference": "EF 50.0 %",
            "prediction": "EF 40.0 %",
            "reference_measures": {"EF": 50.04},
            "measures": {"EF": 41.5},
        },
        {"reference": "EF 60.0 %", "prediction": "The EF is 58 %."},
        {"reference": "EF 70.0 %", "prediction": "I do not know."},
    ]
    draw_agreement(rows, tmp_path)
    draw_agreement([{"reference": "yes", "prediction": "no"}], tmp_path)
    ((predicted, true, path),) = calls
    assert path == tmp_path / "agreement.png"
    assert true["EF"].tolist() == [50.04, 60, 70]
    assert predicted["EF"][:2].tolist() == [41.5, 58] and np.isnan(predicted["EF"][2])
    monkeypatch.undo()
    draw_agreement(rows, tmp_path)
    assert Image.open(tmp_path / "agreement.png").size == (504, 912)
