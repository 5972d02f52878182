"""Trains what a config describes: an adapter, a merged model if asked, answers, and a folder that explains the run.

python mllm/pipeline/finetune.py config/training_configs/X.py [--tiny] [--resume] [--cfg-options a.b=c ...]
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import command_parser, quiet_progress, run_command

logger = logging.getLogger("mllm.pipeline.finetune")


def main(argv: Sequence[str]) -> int:
    """Runs a training from its config to its report."""
    arguments = parse(argv)
    quiet_progress()
    from mllm.run.steps import leave

    finetune(arguments)
    leave()  # here, where nothing of the run is held any more
    return 0


def finetune(arguments: argparse.Namespace) -> None:
    """Trains what the command line names, step by step."""
    from transformers import set_seed

    from mllm.engine.builder import build_learner, memory_advice, prepare_trainer
    from mllm.errors import memory_advised
    from mllm.models.builder.builder import load_pretrained
    from mllm.run.data import prepare_data
    from mllm.run.distill import load_teacher
    from mllm.run.open import open_run
    from mllm.run.prepare import prepare_args
    from mllm.run.steps import (
        announce,
        examination,
        export,
        open_splits,
        report,
        train,
    )

    config, hardware = prepare_args(arguments.config, arguments.cfg_options, tiny=arguments.tiny)
    splits = open_splits(config)
    folder, checkpoint = open_run(config, hardware, splits, arguments.resume)
    set_seed(config.training_args["seed"])
    with memory_advised(memory_advice(config)):
        bundle = load_pretrained(config.model_args, hardware)
        teacher = load_teacher(config, hardware, bundle)
        learner = build_learner(config, bundle, teacher)
        data = prepare_data(config, bundle, teacher, learner, splits)
        untrained = examination(config, bundle, splits) if config.data_args.compute_untrained else None

        trainer = prepare_trainer(config, hardware, learner, folder, **data)
        announce(trainer, bundle, folder)
        train(config, bundle, trainer, splits, checkpoint)

        written = export(config, bundle, trainer, splits, folder)  # before the examination, which can fail
        answers = examination(config, bundle, splits)
        report(config, trainer, splits, written, answers, untrained)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("train", "Train what a config describes.")
    parser.add_argument("config", help="a Python config, such as config/training_configs/medgemma_cpu_demo.py")
    parser.add_argument(
        "--tiny", action="store_true", help="replace checkpoints and absent data by tiny generated ones"
    )
    parser.add_argument("--resume", action="store_true", help="continue the last run from its newest checkpoint")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override keys: training_args.max_steps=3",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
