"""Optional filters of conversations by length, duplicates and language; dropped conversations are counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from mllm.errors import ConfigError, hint
from mllm.structures import Turn


@dataclass
class TextFilters:
    """Filters of conversations, and the number of dropped conversations by reason."""

    min_characters: int = 1
    """Minimum number of characters of all answers of a conversation together."""
    max_characters: int | None = None
    """Maximum number of characters of all turns of a conversation together."""
    duplicates: bool = True
    """False: keep only the first of conversations that are equal except for case and white space."""
    language: str | None = None
    """Language of the answers as an ISO 639-1 code ('en'), detected by py3langid (unreliable for short answers)."""
    dropped: Counter[str] = field(default_factory=Counter, init=False)
    total: int = field(default=0, init=False)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TextFilters:
        """Return the filters of a config; raise `ConfigError` for an unknown key or language."""
        known = [item.name for item in fields(cls) if item.init]
        for key in options:
            if key not in known:
                raise ConfigError(f"filters has no key '{key}'{hint(key, known)}")
        filters = cls(**options)
        limits = {"min_characters": filters.min_characters, "max_characters": filters.max_characters}
        for key, limit in limits.items():
            if type(limit) is not int and (key == "min_characters" or limit is not None):
                raise ConfigError(f"filters: {key} must be an integer, not {limit!r}")
        if filters.language is not None and filters.language not in (codes := _language_codes()):
            raise ConfigError(f"filters: unknown language '{filters.language}'{hint(filters.language, codes)}")
        return filters

    def select(self, conversations: Iterable[list[Turn] | str]) -> list[int]:
        """Return the numbers of the conversations that pass; an error message in place of turns passes, too."""
        selected, digests = [], set()
        for number, turns in enumerate(conversations):
            self.total += 1
            reason = None if isinstance(turns, str) else self._reason(turns)
            if reason is None and not self.duplicates and not isinstance(turns, str):
                text = " ".join(" ".join(turn.text.casefold().split()) for turn in turns)
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                reason = "duplicate" if digest in digests else None
                digests.add(digest)
            if reason is None:
                selected.append(number)
            else:
                self.dropped[reason] += 1
        return selected

    @property
    def report(self) -> str:
        """Summary for the log: `9 of 12 conversations kept; dropped: 2 duplicate, 1 too long`."""
        dropped = sum(self.dropped.values())
        parts = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        return f"{self.total - dropped} of {self.total} conversations kept" + (f"; dropped: {parts}" if parts else "")

    def _reason(self, turns: list[Turn]) -> str | None:
        """Return the reason for dropping a conversation; None if it passes."""
        answers = "".join(turn.text for turn in turns if turn.role == "assistant")
        if len(answers) < self.min_characters:
            return "too short"
        if self.max_characters is not None and sum(len(turn.text) for turn in turns) > self.max_characters:
            return "too long"
        if self.language is not None and _language_detector().classify(answers)[0] != self.language:
            return "in another language"
        return None


@cache
def _language_detector() -> Any:
    """Return the language detector; its model is part of the package."""
    try:
        import py3langid
    except ImportError as error:
        raise ConfigError("filters.language needs the package py3langid: pip install -e '.[text]'") from error
    return py3langid


@cache
def _language_codes() -> list[str]:
    """Return the language codes of the detector."""
    return sorted(code for code, _ in _language_detector().rank("text"))
