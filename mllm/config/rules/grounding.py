"""Rules for heads and the objectives that train them."""

from __future__ import annotations

import logging

from mllm.config.schema import RunConfig
from mllm.errors import ConfigError
from mllm.registry import HEADS, OBJECTIVES

logger = logging.getLogger(__name__)


def refuse_objectives_without_heads(config: RunConfig) -> None:
    """Raise `ConfigError` for an objective whose head is missing; warn about a head that no objective trains.

    `Objective.reads` names the head of an objective. An objective that does not read targets does not train it alone.
    """
    trained = set()
    for name, options in config.objectives.items():
        attributes = OBJECTIVES.describe(options["type"]).attributes
        head = attributes["reads"]
        if head is None:
            continue
        if attributes["reads_targets"]:
            trained.add(head)
        if head not in config.model_args.heads:
            raise ConfigError(
                f"{config.origin('objectives', name)}: objectives.{name} ({options['type']}) needs "
                f"model_args.heads = dict({head}=dict(type='{_head_type(head)}'))"
            )
    for head in config.model_args.heads.keys() - trained:
        objective = _objective_type(head)
        logger.warning(
            "no objective trains the %s head: add objectives = dict(%s=dict(type='%s'))", head, head, objective
        )


def _head_type(name: str) -> str:
    """Return the type of head whose predictions have the name `name`."""
    return next(kind for kind in HEADS.names() if HEADS.describe(kind).attributes.get("predicts") == name)


def _objective_type(head: str) -> str:
    """Return the first type of objective that trains a head."""
    attributes = {kind: OBJECTIVES.describe(kind).attributes for kind in OBJECTIVES.names()}
    return next(kind for kind, of in attributes.items() if of.get("reads") == head and of.get("reads_targets"))
