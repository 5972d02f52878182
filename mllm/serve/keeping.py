"""File of requests and answers, which the server writes only if it is asked to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mllm.errors import ConfigError
from mllm.predict.model_answer import ModelAnswer
from mllm.serve.replies import extra_fields


class Keeper:
    """JSON lines with the texts of requests and answers. Contents of images are left out.

    Args:
        path: The file, which is readable for its owner only. New lines are appended.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise ConfigError(f"--keep {path} cannot be written: {error.strerror}") from error
        self._file = open(descriptor, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115

    def write(self, request: Mapping[str, Any], answers: Sequence[ModelAnswer]) -> None:
        """Append a request and its answers."""
        fields = [{"text": answer.text, "end": answer.end, **extra_fields(answer)} for answer in answers]
        row = {"time": datetime.now(timezone.utc).isoformat(), "request": request, "answers": fields}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
