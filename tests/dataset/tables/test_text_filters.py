"""Tests of the filters of conversations."""

import pytest

from mllm.dataset.tables.text_filters import TextFilters
from mllm.errors import ConfigError
from mllm.structures import Turn


def pair(question: str, answer: str) -> list[Turn]:
    return [Turn("user", question), Turn("assistant", answer)]


def test_dropped_conversations_are_counted_by_reason():
    filters = TextFilters.of(dict(min_characters=3, max_characters=200, duplicates=False, language="en"))
    conversations = [
        pair("What is it?", "The liver is enlarged and its edge is smooth."),
        pair("what  is it?", "the liver IS enlarged and its edge is smooth."),
        pair("What is it?", "No"),
        pair("What is it? " * 20, "The liver is enlarged."),
        pair("What is it?", "Die Leber ist vergrößert, und ihr Rand ist glatt."),
        "line 6: not valid JSON",
    ]
    assert filters.select(conversations) == [0, 5]
    assert filters.dropped == {"duplicate": 1, "too short": 1, "too long": 1, "in another language": 1}
    assert filters.report.startswith("2 of 6 conversations kept; dropped: ")


def test_unknown_filters_and_languages_are_refused():
    with pytest.raises(ConfigError, match="filters has no key 'langage': did you mean 'language'"):
        TextFilters.of(dict(langage="en"))
    with pytest.raises(ConfigError, match="min_characters must be an integer, not 'many'"):
        TextFilters.of(dict(min_characters="many"))
    with pytest.raises(ConfigError, match="unknown language 'english'"):
        TextFilters.of(dict(language="english"))
