"""Rules for heads and the objectives that train them."""

from __future__ import annotations

import logging

from mllm.config.schema import RunConfig
from mllm.errors import ConfigError

logger = logging.getLogger(__name__)

READERS = {"BoxLoss": "box", "MaskLoss": "mask", "MeasureLoss": "measures"}
"""Which head's findings an objective reads."""


def refuse_objectives_without_heads(config: RunConfig) -> None:
    """Raise `ConfigError` for a loss of boxes or masks without its head; warn about a head without a loss."""
    read = set()
    for name, options in config.objectives.items():
        head = READERS.get(options["type"])
        if head is None:
            continue
        read.add(head)
        if head not in config.model_args.heads:
            kind = {"box": "BoxHead", "mask": "MaskHead", "measures": "RegressionHead"}[head]
            raise ConfigError(
                f"{config.place('objectives', name)}: objectives.{name} ({options['type']}) needs "
                f"model_args.heads = dict({head}=dict(type='{kind}'))"
            )
    for head in config.model_args.heads.keys() - read:
        loss = next(name for name, read_head in READERS.items() if read_head == head)
        logger.warning("no objective trains the %s head: add objectives = dict(%s=dict(type='%s'))", head, head, loss)
