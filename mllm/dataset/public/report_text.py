"""Sections of radiology reports of MIMIC-CXR, found as in MIT-LCP/mimic-cxr (`section_parser.py`)."""

from __future__ import annotations

import re

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]+):(?:\s|$)", re.MULTILINE)
"""Heading of a section: capital letters and a colon at the beginning of a line."""
_NAMES = {
    "FINDINGS": "findings",
    "FINDING": "findings",
    "IMPRESSION": "impression",
    "IMPRESSIONS": "impression",
    "CONCLUSION": "impression",
    "CONCLUSIONS": "impression",
    "FINDINGS AND IMPRESSION": "findings",
    "FINDINGS/IMPRESSION": "findings",
}
"""Heading -> section. Other headings end a section."""
_ADDENDUM_END = re.compile(r"^\s*_{20,}\s*$", re.MULTILINE)
"""Line of underscores between an addendum and the report."""


def sections(report: str) -> dict[str, str]:
    """Return the sections `findings` and `impression` of a report, as far as it has them.

    An addendum, which precedes a line of underscores, is left out. White space is reduced to single spaces;
    redactions (`___`) stay.
    """
    text = _ADDENDUM_END.split(report)[-1]
    matches = list(_HEADING.finditer(text))
    sections: dict[str, list[str]] = {}
    for number, match in enumerate(matches):
        name = _NAMES.get(" ".join(match[1].split()))
        end = matches[number + 1].start() if number + 1 < len(matches) else len(text)
        body = " ".join(text[match.end() : end].split())
        if name and body:
            sections.setdefault(name, []).append(body)
    return {name: " ".join(bodies) for name, bodies in sections.items()}


def last_paragraph(report: str) -> str:
    """Return the last paragraph of a report, in which reports without headings state their result."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", _ADDENDUM_END.split(report)[-1])]
    return next((part for part in reversed(paragraphs) if part), "")
