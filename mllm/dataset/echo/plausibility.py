"""Warnings about implausible measures: EF as a fraction, other units, and values that contradict each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mllm.dataset.base import SampleDataset
from mllm.dataset.rows import Row
from mllm.private_messages import PublicText

logger = logging.getLogger(__name__)

FRACTION = "EF is at most 1 %: if it is a fraction, such as 0.656, multiply it by 100"
ABOVE = "EF is above 100 %"
NEGATIVE = "EF is below 0 %"
REVERSED = "ESV is not below EDV: the columns may be exchanged"
OTHER_UNIT = "a volume is below 1 mL or above 1,000 mL: its unit may be another one, such as L or mm3"
CONTRADICTION = "EF differs by more than 20 % from 100 (EDV - ESV) / EDV: check the columns and their rows"
MAX_DIFFERENCE = 20.0
"""Maximum plausible difference of EF from that of the volumes, in percentage points."""
MIN_VOLUME, MAX_VOLUME = 1.0, 1000.0
"""Range of plausible volumes in mL, from a newborn to the largest heart."""
_LISTED = 3
"""Number of rows that a warning names."""


def implausible(measures: Mapping[str, float]) -> list[str]:
    """Return the reasons for which measures are implausible; NaN is unknown and never implausible."""
    ef, edv, esv = (measures.get(name, float("nan")) for name in ("EF", "EDV", "ESV"))
    checks = {
        FRACTION: 0 < ef <= 1,
        ABOVE: ef > 100,
        NEGATIVE: ef < 0,
        REVERSED: esv >= edv,
        OTHER_UNIT: any(volume < MIN_VOLUME or volume > MAX_VOLUME for volume in (edv, esv)),
        CONTRADICTION: 1 < ef <= 100 and 0 < esv < edv and abs(ef - 100 * (edv - esv) / edv) > MAX_DIFFERENCE,
    }
    return [reason for reason, is_true in checks.items() if is_true]


class ImplausibleMeasures:
    """Rows of a split with implausible measures."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.rows: dict[str, list[Row]] = {}
        """Reason -> rows."""

    def add(self, measures: Mapping[str, float], dataset: SampleDataset, index: int) -> None:
        """Check the measures of a row."""
        for reason in implausible(measures):
            self.rows.setdefault(reason, []).append(Row.current(dataset, index))

    def report(self) -> None:
        """Log one warning for each reason, with the first rows."""
        for reason, rows in self.rows.items():
            locations = "; ".join(row.name for row in rows[:_LISTED])
            tail = f" and {len(rows) - _LISTED:,} more rows" if len(rows) > _LISTED else ""
            logger.warning("%s", PublicText(f"{self.split}: {reason} ({locations}{tail})"))
