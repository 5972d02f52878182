"""Memory of one of several processes: arithmetic over the components of the plan of one process."""

from __future__ import annotations

from mllm.planning.plan import Plan
from mllm.planning.step import GRADIENTS, OPTIMIZER, TRAINED, WEIGHTS, by_kind

DIVIDED = {
    "": (),
    "zero1": (OPTIMIZER,),
    "zero2": (OPTIMIZER, GRADIENTS),
    "zero3": (OPTIMIZER, GRADIENTS, TRAINED, WEIGHTS),
    "fsdp": (OPTIMIZER, GRADIENTS, TRAINED, WEIGHTS),
}
"""Components that an engine divides among the processes."""
FLOATS = 4
"""Bytes of a number in fp32."""


def peak_of(plan: Plan, processes: int) -> int:
    """Return the peak memory of one of several processes in bytes.

    FSDP and ZeRO-3 divide the weights when the first update begins, and gather them after the last one. So a process
    also needs room for all weights and the activations of a micro-batch, with which the model is checked and evaluated.
    """
    whole = 0
    if processes > 1 and WEIGHTS in DIVIDED[plan.shards]:
        kinds = by_kind(plan.update.components)
        whole = plan.peak - kinds[OPTIMIZER] - kinds[GRADIENTS]
    return max(update_peak_of(plan, processes), whole)


def update_peak_of(plan: Plan, processes: int) -> int:
    """Return the peak memory of one of several processes in an update, in bytes.

    Engines that shard states divide them by the number of processes; FSDP and ZeRO-3 gather weights in addition, as
    `Plan.gathered` says. DDP has a second copy of the gradients, in its buckets.
    """
    if processes == 1:
        return plan.peak
    kinds = by_kind(plan.update.components)
    saved = sum(kinds[kind] for kind in DIVIDED[plan.shards]) * (processes - 1) // processes
    buckets = plan.update.trained * FLOATS if not plan.shards else 0
    return plan.peak - saved + buckets + plan.gathered
