"""Rules by which the published baselines of FLARE 2025 read answers."""

from __future__ import annotations

import json
import re
from typing import Any

BOX = re.compile(r"\[?\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]?")


def read_as_the_baselines_do(text: str, task: str) -> Any:
    """Return the value of an answer by the rules of the published scorers of FLARE 2025."""
    if task == "classification":
        return text.strip().upper() if len(text.strip()) == 1 else text.strip().lower()
    if task == "multi_label_classification":
        return [part.strip() for part in text.split(";" if ";" in text else ",") if part.strip()]
    if task == "detection":
        return [[int(number) for number in match] for match in BOX.findall(text)]
    if task == "instance_detection":
        return json.loads(text) if text.startswith("{") and text.endswith("}") else {}
    match = re.search(r"-?\d+\.?\d*", text)
    return None if match is None else float(match[0])
