"""Optional filters of text: by length, for duplicates, by the language of the answer; what they drop is counted."""

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
    """Which conversations are kept, and how many were dropped for which reason."""

    min_characters: int = 1
    """Of all answers of a conversation together."""
    max_characters: int | None = None
    """Of all its turns together."""
    duplicates: bool = True
    """False: of conversations that are equal apart from case and spaces, only the first is kept."""
    language: str | None = None
    """The answers' language, ISO 639-1 ('en'), as py3langid recognizes it (short answers unreliably); None: any."""
    dropped: Counter[str] = field(default_factory=Counter, init=False)
    seen: int = field(default=0, init=False)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TextFilters:
        """Filters from a config's dict; raises `ConfigError` for an unknown key or language."""
        known = [item.name for item in fields(cls) if item.init]
        for key in options:
            if key not in known:
                raise ConfigError(f"filters has no key '{key}'{hint(key, known)}")
        filters = cls(**options)
        limits = {"min_characters": filters.min_characters, "max_characters": filters.max_characters}
        for key, limit in limits.items():
            if type(limit) is not int and (key == "min_characters" or limit is not None):
                raise ConfigError(f"filters: {key} must be a whole number, not {limit!r}")
        if filters.language is not None and filters.language not in (known := _languages()):
            raise ConfigError(f"filters: unknown language '{filters.language}'{hint(filters.language, known)}")
        return filters

    def kept(self, conversations: Iterable[list[Turn] | str]) -> list[int]:
        """The numbers of the conversations that pass; one that could not be read (a sentence) passes too."""
        passed, met = [], set()
        for number, turns in enumerate(conversations):
            self.seen += 1
            reason = None if isinstance(turns, str) else self._reason(turns)
            if reason is None and not self.duplicates and not isinstance(turns, str):
                words = " ".join(" ".join(turn.text.casefold().split()) for turn in turns)
                digest = hashlib.blake2b(words.encode(), digest_size=16).digest()
                reason = "duplicate" if digest in met else None
                met.add(digest)
            if reason is None:
                passed.append(number)
            else:
                self.dropped[reason] += 1
        return passed

    @property
    def report(self) -> str:
        """`9 of 12 conversations kept; dropped: 2 duplicate, 1 too long`."""
        total = sum(self.dropped.values())
        parts = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        return f"{self.seen - total} of {self.seen} conversations kept" + (f"; dropped: {parts}" if parts else "")

    def _reason(self, turns: list[Turn]) -> str | None:
        """Why a conversation is dropped."""
        answers = "".join(turn.text for turn in turns if turn.role == "assistant")
        if len(answers) < self.min_characters:
            return "too short"
        if self.max_characters is not None and sum(len(turn.text) for turn in turns) > self.max_characters:
            return "too long"
        if self.language is not None and _recognizer().classify(answers)[0] != self.language:
            return "in another language"
        return None


@cache
def _recognizer() -> Any:
    """The recognizer of languages; its model lies in the package."""
    try:
        import py3langid
    except ImportError as error:
        raise ConfigError("filters.language needs the package py3langid: pip install -e '.[text]'") from error
    return py3langid


@cache
def _languages() -> list[str]:
    """The codes that it knows."""
    return sorted(code for code, _ in _recognizer().rank("text"))
