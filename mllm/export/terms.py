"""Terms of use of base models, which also apply to everything derived from them."""

from __future__ import annotations

from pathlib import Path

from mllm.export.facts import Facts
from mllm.family import FAMILIES, Terms


def is_tiny(base: str) -> bool:
    """Return True for the random models of this library, which have no terms."""
    return Path(base).name.startswith("tiny-")


def terms_of_base(type: str, base: str) -> Terms | None:
    """Return the terms of the base model `base`, loaded as the model type `type`; None if they are not known here."""
    if is_tiny(base):
        return None
    by_name: Terms | None = FAMILIES.look_up("terms", Path(base).name)
    return by_name or next(reversed([*FAMILIES.find(type).terms.values()]), None)


def terms_text(facts: Facts) -> str:
    """Return the terms of a trained model as sentences."""
    terms = terms_of_base(facts.settings["type"], facts.base)
    first = f"{terms.notice} See {terms.link}." if terms else "The license of the base model applies to this model."
    return (
        f"{first} The licenses of the training data apply as well. Weights can contain training data: keep this folder "
        "as confidential as the data."
    )
