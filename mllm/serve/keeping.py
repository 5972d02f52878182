"""File of requests and answers, which the server writes only if it is asked to."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mllm.errors import ConfigError
from mllm.predict.model_answer import ModelAnswer
from mllm.serve.replies import extra_fields

logger = logging.getLogger(__name__)


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
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, 0o600)  # an earlier file may be readable for others
        except OSError as error:
            raise ConfigError(f"--keep {path} cannot be written: {error.strerror}") from error
        # Without a buffer: lines that could not be written would stay in it, and fail again at the next request.
        self._file = open(descriptor, "ab", buffering=0)  # noqa: SIM115
        self._begin = b""
        """Bytes before the next line: its end, if the last one was cut off."""

    def write(self, request: Mapping[str, Any], answers: Sequence[ModelAnswer]) -> None:
        """Append a request and its answers. A failure, such as a full disk, is logged: the answer is not lost by it."""
        fields = [{"text": answer.text, "end": answer.end, **extra_fields(answer)} for answer in answers]
        row = {"time": datetime.now(timezone.utc).isoformat(), "request": request, "answers": fields}
        line = json.dumps(row, ensure_ascii=False) + "\n"
        content = self._begin + line.encode("utf-8", "backslashreplace")
        try:
            is_whole = self._file.write(content) == len(content)
            reason = "the disk is full"
        except OSError as error:
            is_whole, reason = False, error.strerror or type(error).__name__
        self._begin = b"" if is_whole else b"\n"
        if not is_whole:
            logger.error("a request and its answers could not be written to the file of --keep: %s", reason)
