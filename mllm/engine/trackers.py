"""Trackers of a run: the callbacks of transformers behind `report_to`, which get its figures and no local path.

What a tracker stores leaves the run folder, and often the machine. It gets the figures of the log, and of the config
the numbers, switches and names of methods: the paths of a folder, a table or a checkpoint may contain names of people.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from mllm.errors import ConfigError, is_out_of_memory, one_line

logger = logging.getLogger(__name__)

TEXTS = (
    *("lr_scheduler_type", "optim", "torch_compile_backend", "torch_compile_mode", "project"),
    *("logging_strategy", "eval_strategy", "save_strategy", "metric_for_best_model"),
)
"""Keys of `training_args` whose texts are names of methods, or the name of a project."""
QUIET_WANDB = {
    "WANDB_CONSOLE": "off",  # the log names files and quotes rows
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB__DISABLE_META": "true",  # command line, folders, name of the machine
    "WANDB__SAVE_REQUIREMENTS": "false",
}
"""Environment variables that keep wandb from storing more than figures and settings. Those that are set stay."""


class Tracker(TrainerCallback):
    """Callback that passes the figures of a run and its public settings to a tracker.

    A tracker that fails at the beginning ends the run. One that fails later is left out, because the training is worth
    more, and `training_log.json` has all figures.

    Args:
        name: Name in `report_to`.
        callback: Callback of transformers.
        run_name: Name of the run in the tracker; None: the tracker chooses it.
        settings: Settings that the tracker stores.
    """

    def __init__(self, name: str, callback: TrainerCallback, run_name: str | None, settings: Mapping[str, Any]) -> None:
        self.name, self.callback, self.run_name, self.settings = name, callback, run_name, settings
        self.has_failed = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the tracker. Raise `ConfigError` if it cannot be used."""
        if self.name == "wandb":
            for variable, value in QUIET_WANDB.items():
                os.environ.setdefault(variable, value)
        try:
            self.callback.on_train_begin(self._public(args), state, control, **kwargs)
        except Exception as error:
            raise unusable(self.name, error) from error

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass a log entry."""
        self._try(self.callback.on_log, args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the tracker."""
        self._try(self.callback.on_train_end, args, state, control, **kwargs)

    def _try(self, event: Callable[..., Any], args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call the tracker, and leave it out from its first error on."""
        if self.has_failed:
            return
        try:
            event(self._public(args), state, control, **kwargs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.has_failed = True
            logger.warning(
                "the tracker %s failed at step %d and gets no more figures: %s; training_log.json has all of them",
                *(self.name, state.global_step, one_line(str(error))),
            )

    def _public(self, args: TrainingArguments) -> TrainingArguments:
        """Return the arguments with the name of the run; written as text, they are the settings of the tracker."""
        public = copy(args)
        public.run_name = self.run_name
        vars(public)["to_dict"] = lambda: dict(self.settings)  # what the callbacks of transformers store
        return public


def try_tracker(name: str, origin: str) -> None:
    """Raise `ConfigError` for a tracker that cannot be used. wandb asks for its key, MLflow for its store."""
    try:
        get_reporting_integration_callbacks([name])[0]()
        if name == "wandb" and os.environ.get("WANDB_MODE", "online") == "online":
            importlib.import_module("wandb").login()
        elif name == "mlflow":
            importlib.import_module("mlflow").search_experiments(max_results=1)
    except Exception as error:
        raise unusable(name, error, origin) from error


def public_settings(training_args: Mapping[str, Any], model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return what trackers store of a config: numbers, switches and names of methods of training and model."""
    settings = dict(_numbers("", training_args))
    settings |= {key: training_args[key] for key in TEXTS if isinstance(training_args[key], str)}
    settings |= dict(_numbers("model_args.", model_args))
    settings["model_args.type"] = model_args["type"]
    return settings


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((prefix + key, value) for key, value in values.items() if isinstance(value, (bool, int, float)))


def unusable(name: str, error: Exception, origin: str = "training_args") -> ConfigError:
    """Return the error for a tracker that cannot be started."""
    reason = one_line(str(error)) or type(error).__name__
    return ConfigError(f"{origin}: report_to={name!r} cannot be used: {reason}; set it up, or remove it from report_to")
