"""A training run of a config file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mllm.private_messages import call_privately
from mllm.run.prepare import prepare_args


def finetune(
    path: str, overrides: Sequence[str] = (), *, tiny: bool = False, resume: bool = False, plans: bool | None = None
) -> None:
    """Train the model of the config at `path` and write its run folder.

    Args:
        path: A config file.
        overrides: `KEY=VALUE` for keys of the config.
        tiny: Replace checkpoints and absent data by tiny ones, and limit the number of updates.
        resume: Continue the run that trained last from its newest checkpoint.
        plans: Compare the memory with that of a plan; None: on a GPU.
    """
    config, hardware = prepare_args(path, overrides, tiny=tiny, loads_model=True)

    # The imports take seconds. They follow the checks, so that a mistake in the config is reported at once.
    from mllm.run.steps import run_steps

    steps = partial(run_steps, config, hardware, tiny=tiny, resume=resume, plans=plans)
    call_privately(steps, config.privacy_args is not None)
