"""Command `mllm evaluate`: evaluate a trained adapter or a whole model on a split of a config.

python mllm/pipeline/evaluate_model.py config/training_configs/X.py --adapter exp/X/latest/adapter --split test
python mllm/pipeline/evaluate_model.py config/training_configs/X.py --model google/medgemma-4b-it --metric rec --out DIR
python mllm/pipeline/evaluate_model.py config/training_configs/X.py --server http://localhost:8000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import add_override_option, command_parser, quiet_progress, run_command
from mllm.pipeline.options import add_model_options, check_model_options, check_server_options

SPLITS = ("test", "validation")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    quiet_progress()
    from mllm.run.prepare import prepare_args, prepare_data_args

    if args.server:
        config = prepare_data_args(args.config, args.cfg_options, tiny=args.tiny)
    else:
        config, _ = prepare_args(args.config, args.cfg_options, tiny=args.tiny, loads_model=True)
    from mllm.predict.evaluate import EvaluateOptions, evaluate
    from mllm.predict.server import CONCURRENCY, ServerOptions

    server = None
    if args.server:
        concurrency = args.concurrency or CONCURRENCY
        server = ServerOptions(args.server, args.server_model, concurrency, args.allow_remote)
    options = EvaluateOptions(
        config=args.config,
        cfg_options=args.cfg_options,
        adapter=args.adapter,
        model=args.model,
        base=args.base,
        server=server,
        split=args.split,
        metrics=args.metric,
        by=args.by,
        draw=args.draw,
        out=args.out,
    )
    evaluate(config, options)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("evaluate", "Evaluate a model on a split of a config.")
    parser.add_argument("config", help="the config of the split, such as the config.py of a run folder")
    add_model_options(parser, server=True)
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0])
    parser.add_argument(
        "--metric",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="metrics to compute (default: data_args.compute_metric)",
    )
    parser.add_argument(
        "--by",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN",
        help="figures by modality, task or a column: sex, or age:18,40,65 with bounds (default: data_args.strata)",
    )
    parser.add_argument(
        "--out",
        help="a new folder, or that of a killed evaluation (default: evaluation-SPLIT in the run folder of the model)",
    )
    parser.add_argument("--draw", help="a new folder for pictures of predicted and true boxes, points and masks")
    parser.add_argument("--tiny", action="store_true", help="replace checkpoints and absent data by tiny ones")
    add_override_option(parser, "data_args.gen_kwargs.max_new_tokens=64")
    args = parser.parse_args(argv)
    check_model_options(parser, args)
    check_server_options(parser, args)
    return args


if __name__ == "__main__":
    sys.exit(run_command(main))
