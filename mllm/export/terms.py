"""Terms of use of base models, which also apply to everything derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mllm.export.facts import Facts


@dataclass(frozen=True)
class Terms:
    """Terms of use of a family of base models."""

    name: str
    """The `license_name` in the header of a card."""
    license: str
    """The `license` in the metadata of a GGUF file."""
    link: str
    sentence: str


MEDGEMMA = Terms(
    "health-ai-developer-foundations",
    "other",
    "https://developers.google.com/health-ai-developer-foundations/terms",
    "MedGemma is provided under the Health AI Developer Foundations terms of use. They also apply to models derived "
    "from it.",
)
GEMMA = Terms(
    "gemma",
    "gemma",
    "https://ai.google.dev/gemma/terms",
    "Gemma is provided under the Gemma terms of use. They also apply to models derived from it. For MedGemma the "
    "Health AI Developer Foundations terms apply.",
)


def is_tiny(base: str) -> bool:
    """Return True for the random models of this library, which have no terms."""
    return Path(base).name.startswith("tiny-")


def terms_of_base(type: str, base: str) -> Terms | None:
    """Return the terms of the base model `base`, loaded as the model type `type`; None if they are not known here."""
    if is_tiny(base):
        return None
    name = Path(base).name.lower()
    if "medgemma" in name:
        return MEDGEMMA
    return GEMMA if type == "medgemma" or "gemma" in name else None


def terms_text(facts: Facts) -> str:
    """Return the terms of a trained model as sentences."""
    terms = terms_of_base(facts.settings["type"], facts.base)
    first = f"{terms.sentence} See {terms.link}." if terms else "The license of the base model applies to this model."
    return (
        f"{first} The licenses of the training data apply as well. Weights can contain training data: keep this folder "
        "as confidential as the data."
    )
