"""Rules that find the labels of CheXpert in reports."""

from __future__ import annotations

import pytest
from scores import score

from mllm.metrics.chexpert import ChexpertF1, labels_of


@pytest.mark.parametrize(
    ("report", "labels"),
    [
        ("The lungs are clear. No pleural effusion or pneumothorax.", {"No Finding"}),
        ("The heart is mildly enlarged. Small left pleural effusion.", {"Cardiomegaly", "Pleural Effusion"}),
        ("No effusion, but bibasilar atelectasis.", {"Atelectasis"}),
        ("Possible pneumonia in the left lower lobe.", {"Pneumonia"}),
        ("The pneumothorax has resolved. Pacemaker in place.", {"Support Devices", "No Finding"}),
        ("There is no focal consolidation, pleural effusion, or pulmonary edema.", {"No Finding"}),
        ("Widened mediastinum.\nRib fracture; no pneumothorax", {"Enlarged Cardiomediastinum", "Fracture"}),
        (
            "Pleural thickening, a 4.5 mm nodule, opacities.",
            {"Pleural Other", "Lung Lesion", "Lung Opacity"},
        ),
    ],
)
def test_labels_of_a_report(report: str, labels: set[str]) -> None:
    assert labels_of(report) == labels


def test_f1_of_reports() -> None:
    """True positives 2 (cardiomegaly, no finding), one wrong label (edema), two missed; the empty answer is failed."""
    references = ["Cardiomegaly and pleural effusion.", "Clear lungs.", "Pneumonia."]
    figures = score(ChexpertF1, ["Cardiomegaly. Edema.", "Normal.", ""], references)
    assert figures["f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert figures["f1_macro"] == pytest.approx((1 + 1 + 0 + 0 + 0) / 5), "five labels occur"
    assert figures["f1_samples"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert (figures["labels"], figures["failed"], figures["samples"]) == (14, 1, 3)
