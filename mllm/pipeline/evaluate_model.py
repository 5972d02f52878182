"""Answers a split of a config with a trained adapter or a whole model, and takes the figures of its answers.

python mllm/pipeline/evaluate_model.py config/training_configs/X.py --adapter exp/X/latest/adapter --split test
python mllm/pipeline/evaluate_model.py config/training_configs/X.py --model google/medgemma-4b-it --metric rec --out DIR
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError, DataError, hint
from mllm.pipeline.command import command_parser, quiet_progress, run_command

if TYPE_CHECKING:
    from mllm.config.schema import ModelArgs, RunConfig
    from mllm.engine.evaluation import Examination

logger = logging.getLogger("mllm.pipeline.evaluate_model")
SPLITS = ("test", "validation")
METRICS_FILE, PREDICTIONS = "metrics.json", "predictions.jsonl"


def main(argv: Sequence[str]) -> int:
    """Generates an answer to every row of the split, writes rows and figures, and prints the figures."""
    arguments = parse(argv)
    quiet_progress()
    from mllm.dataset.builder import build_datasets
    from mllm.engine.evaluation import examine
    from mllm.predict.load import best_hardware, load_for_answers
    from mllm.run.prepare import prepare_args

    config, _ = prepare_args(arguments.config, arguments.cfg_options, tiny=arguments.tiny)
    metrics = chosen_metrics(config, arguments.metric)
    model_args = chosen_model(config, arguments)
    folder = output_folder(config, arguments)
    # What is asked is found before the model is loaded: a misspelt path should not cost minutes.
    only: dict[str, Any] = {name: None for name in ("train", *SPLITS) if name != arguments.split}
    data = build_datasets(replace(config.data_args, **only), seed=config.training_args.get("seed", 42))
    if arguments.split not in data:
        raise ConfigError(
            f"{arguments.config}: the config has no split '{arguments.split}' (data_args.{arguments.split})"
        )
    bundle = load_for_answers(model_args, best_hardware())
    started = time.monotonic()
    skip = config.data_args.on_error == "skip"
    examined = examine(bundle, data[arguments.split], metrics, skip_failures=skip, **config.data_args.gen_kwargs)
    if not examined.rows:
        first = f"; first: {examined.skipped[0]}" if examined.skipped else ""
        raise DataError(
            f"none of the {len(data[arguments.split])} rows of '{arguments.split}' could be answered{first}"
        )
    write(folder, examined, summary(config, model_args, arguments, examined, time.monotonic() - started))
    print(table(examined.figures))
    for sentence in examined.skipped:
        logger.warning("skipped %s", sentence)
    logger.info("%d answers, rows skipped: %d; written to %s", len(examined.rows), len(examined.skipped), folder)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("evaluate", "Answer a split of a config and take the figures of the answers.")
    parser.add_argument("config", help="the config whose split is asked, such as the config.py of a run folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--adapter", help="an adapter/ folder, the run folder around it, or a name on the Hub")
    source.add_argument("--model", help="a merged/ folder, or a base model without adapter")
    parser.add_argument("--base", help="the adapter's base model, where it is not the one that the adapter names")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0])
    parser.add_argument(
        "--metric",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="figures to take, instead of those of data_args.compute_metric",
    )
    parser.add_argument("--out", help="a new folder (default: evaluation-SPLIT in the run folder of the model)")
    parser.add_argument("--tiny", action="store_true", help="replace checkpoints and absent data by tiny ones")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override keys: data_args.gen_kwargs.max_new_tokens=64",
    )
    arguments = parser.parse_args(argv)
    if arguments.base and arguments.model:
        parser.error("--base belongs to --adapter; --model needs none")
    return arguments


def chosen_metrics(config: RunConfig, names: Sequence[str]) -> dict[str, Any]:
    """The metrics that the command line names, or else the config; refuses none at all and unknown names."""
    from mllm.registry import METRICS

    names = list(dict.fromkeys(names or config.data_args.metrics))
    if not names:
        known = ", ".join(METRICS.names())
        raise ConfigError(f"the config names no metric in data_args.compute_metric: give --metric NAME, one of {known}")
    for name in names:
        if name not in METRICS.names():
            raise ConfigError(f"unknown metric '{name}'{hint(name, METRICS.names())}")
    return {name: METRICS.find(name) for name in names}


def chosen_model(config: RunConfig, arguments: argparse.Namespace) -> ModelArgs:
    """What is loaded: an adapter or a whole model, encoded as `mllm.json` beside it says.

    A model without that file is encoded as the config says. Weights are stored in 4 or 8 bits where the config asks
    for it, as in the training.
    """
    from mllm.export.settings import read_settings
    from mllm.predict.load import adapter_args, located, whole_model_args

    stored = {key: vars(config.model_args)[key] or None for key in ("load_in_4bit", "load_in_8bit")}
    if arguments.adapter:
        return adapter_args(arguments.adapter, arguments.base, **stored)
    if read_settings(located(arguments.model)):
        return whole_model_args(arguments.model, **stored)
    whole_model_args(arguments.model, type=config.model_args.type)  # refuses an adapter
    base: dict[str, Any] = dict(
        model_name_or_path=located(arguments.model), adapter_path=None, merge_lora=False, lora_r=None
    )
    return replace(config.model_args, **base)


def output_folder(config: RunConfig, arguments: argparse.Namespace) -> Path:
    """Where the results go: `--out`, which must be new or empty, or the next free `evaluation-SPLIT` of the run.

    The run folder is the one around the adapter or the merged model; a model that lies in none gets
    `exp/<config name>/`.
    """
    if arguments.out:
        folder = Path(arguments.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--out {folder} exists and is not an empty folder; remove it or choose another name")
        return folder
    source = Path(arguments.adapter or arguments.model)
    if (source / "adapter").is_dir():
        run = source.resolve()
    elif source.is_dir() and (arguments.adapter or (source.resolve().parent / "config.py").is_file()):
        run = source.resolve().parent
    else:
        run = Path("exp") / config.name
    name = f"evaluation-{arguments.split}"
    folder, number = run / name, 1
    while folder.exists():
        number += 1
        folder = run / f"{name}-{number}"
    return folder


def summary(
    config: RunConfig, model_args: ModelArgs, arguments: argparse.Namespace, examined: Examination, seconds: float
) -> dict[str, Any]:
    """What `metrics.json` holds: the figures, how many rows they are of, and all that they depend on."""
    from mllm.config.hardware import environment

    settings = asdict(config.data_args)
    weights = [] if model_args.adapter_path is None else sorted(Path(model_args.adapter_path).glob("*.safetensors"))
    return {
        "figures": examined.figures,
        "counts": {
            "answers": len(examined.rows),
            "skipped": len(examined.skipped),
            "unreadable": sum(row.get("unreadable", 0) for row in examined.rows),
            "tokens": sum(row["tokens"] for row in examined.rows),
        },
        "skipped": examined.skipped,
        "seconds": round(seconds, 1),
        "settings": {
            "config": arguments.config,
            "cfg_options": arguments.cfg_options,
            "tiny": config.tiny,
            "split": arguments.split,
            "data": settings[arguments.split],
            "gen_kwargs": settings["gen_kwargs"],
            "on_error": settings["on_error"],
        },
        "model": asdict(model_args),
        "adapter_sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in weights},
        "environment": environment(),
    }


def write(folder: Path, examined: Examination, values: dict[str, Any]) -> None:
    """Writes the rows and then the figures, whose presence says that both are complete."""
    from mllm.files import replaced_file, write_json

    with replaced_file(folder / PREDICTIONS) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in examined.rows)
    write_json(folder / METRICS_FILE, values)


def table(figures: dict[str, dict[str, float]]) -> str:
    """The figures in columns for reading: metric, figure, value."""
    from mllm.engine.evaluation import number

    rows = [("metric", "figure", "value")]
    for metric, values in figures.items():
        rows += [(metric, name, number(value)) for name, value in values.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}" for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


if __name__ == "__main__":
    sys.exit(run_command(main))
