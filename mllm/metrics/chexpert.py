"""F1 of the 14 labels of CheXpert in reports of chest X-rays, found by our own rules.

The rules are not the labeler of CheXpert and not CheXbert: figures are not comparable with theirs.
"""

from __future__ import annotations

import re
from array import array

import numpy as np

from mllm.metrics.base import REPORT, computed_once, reads
from mllm.metrics.distinct import DistinctTexts
from mllm.metrics.labels import Labels, LabelSetMetric
from mllm.registry import METRICS
from mllm.structures import Answer

NO_FINDING = "No Finding"
DEVICES = "Support Devices"
MENTIONS = {
    "Enlarged Cardiomediastinum": r"(?:widen\w*|enlarge\w*|prominen\w*) (?:of the )?(?:cardio)?mediastin\w*"
    r"|(?:cardio)?mediastin\w*(?: silhouette| contours?)? (?:is|are) (?:\w+ )?(?:widened|enlarged)",
    "Cardiomegaly": r"cardiomegaly|enlarge\w* (?:of the )?(?:heart|cardiac)|(?:heart|cardiac silhouette|heart size)"
    r"(?: size)? (?:is|appears|remains) (?:\w+ )?(?:enlarged|increased)",
    "Lung Opacity": r"opaci\w+|infiltrat\w+",
    "Lung Lesion": r"nodul\w+|mass(?:es)?|lesions?|tumou?rs?",
    "Edema": r"edema|vascular congestion|congestive heart failure|fluid overload",
    "Consolidation": r"consolidat\w+",
    "Pneumonia": r"pneumonias?",
    "Atelectasis": r"atelecta\w+|volume loss",
    "Pneumothorax": r"pneumothora\w+",
    "Pleural Effusion": r"effusions?|pleural fluid",
    "Pleural Other": r"pleural (?:thickening|plaques?|scarring)|fibrothora\w+",
    "Fracture": r"fractur\w+",
    DEVICES: r"pacemakers?|catheters?|picc|endotracheal tube|et tube|nasogastric tube|ng tube|enteric tube|chest tube"
    r"|sternotomy wires|central (?:venous )?line|port-a-cath|icd|leads?|stents?|(?:prosthetic|artificial) valves?",
}
"""Label -> regular expression of its mentions."""
LABELS = (NO_FINDING, *MENTIONS)
FAILED = -1
"""Bits of an empty answer."""
_NEGATION = re.compile(
    r"\b(?:no|not|without|free of|negative for|absence of|absent|resolved|ruled out|rule out|unlikely|clear of|nor)\b"
)
_NEGATED_AFTER = re.compile(r"^[^,;]{0,40}\b(?:is|are|has|have|was|were) (?:been )?(?:not|resolved|absent|ruled out)\b")
_SCOPE_END = re.compile(r"\b(?:but|however|although|though|with new|otherwise|aside from|except)\b|;")
_SENTENCE = re.compile(r"[.!?:\n]+(?=\s|$)")
_PATTERNS = {label: re.compile(rf"\b(?:{pattern})\b") for label, pattern in MENTIONS.items()}


def labels_of(report: str) -> Labels:
    """Return the labels that a report affirms or calls possible; `No Finding` if none but support devices.

    A mention is negated by a word such as no or without before it in its sentence, up to but, however or a semicolon,
    or by `is not`, `has resolved` and the like behind it.
    """
    labels = set()
    for sentence in _SENTENCE.split(report.lower()):
        for scope in _SCOPE_END.split(" ".join(sentence.split())):
            for label, pattern in _PATTERNS.items():
                if any(not _is_negated(scope, mention) for mention in pattern.finditer(scope)):
                    labels.add(label)
    return frozenset(labels if labels - {DEVICES} else labels | {NO_FINDING})


def _is_negated(scope: str, mention: re.Match[str]) -> bool:
    before, behind = scope[: mention.start()], scope[mention.end() :]
    return bool(_NEGATION.search(before) or _NEGATED_AFTER.search(behind))


@METRICS.register_module(name="chexpert_f1")
@reads("findings")
class ChexpertF1(LabelSetMetric):
    """F1 of the 14 labels of CheXpert in reports, found in answer and reference by our own rules (`labels_of`).

    It is neither the labeler of CheXpert nor CheXbert. Uncertain findings count as present. An empty answer is failed:
    it has no label, not even `No Finding`.

    Figures: `f1_micro`, `f1_macro` (mean over the labels that occur), `f1_samples`, `exact_match`, `labels`, `failed`
    and `samples`.
    """

    tasks = frozenset({REPORT})

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the answer to one sample."""
        answer = _bits(labels_of(prediction.text)) if prediction.text.strip() else FAILED
        self._pairs.extend((answer, _bits(labels_of(reference.text))))

    def pending(self) -> int:
        """Return the number of samples that are kept."""
        return len(self._pairs) // 2

    def kept(self) -> np.ndarray:
        """Return the labels of the answers and references that are kept, [N, 2], one bit for each label."""
        return np.array(self._pairs, np.int64).reshape(-1, 2)

    def forget(self) -> None:
        """Forget the labels that are kept."""
        self._pairs = array("q")

    def read(self, part: np.ndarray) -> list[tuple[Labels | None, Labels]]:
        """Return the labels of each answer of a part (None: failed) and of its reference."""
        return [(None if answer == FAILED else _set(answer), _set(reference)) for answer, reference in part.tolist()]

    @computed_once
    def labels(self) -> DistinctTexts:
        """Return the 14 labels."""
        return DistinctTexts(LABELS)


def _bits(labels: Labels) -> int:
    return sum(1 << number for number, label in enumerate(LABELS) if label in labels)


def _set(bits: int) -> Labels:
    return frozenset(label for number, label in enumerate(LABELS) if bits >> number & 1)
