"""Command `mllm show`: print the registries, a resolved config, or a sample as the model reads it.

python mllm/pipeline/show.py registries
python mllm/pipeline/show.py keys
python mllm/pipeline/show.py families [--untested]
python mllm/pipeline/show.py config config/training_configs/X.py [--cfg-options a.b=c ...]
python mllm/pipeline/show.py sample config/training_configs/X.py [--split train] [--index 0] [--tiny]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import add_override_option, command_parser, quiet_progress, run_command

SAMPLE = (
    "Show one sample as the model reads it: its tokens, supervised ones in green, or its views and measures. Only "
    "this row is checked: `mllm data CONFIG` checks all rows of all splits."
)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    if args.what == "registries":
        from mllm.report.registries import describe_registries

        print(describe_registries())
    elif args.what == "keys":
        from mllm.config.key_document import key_document

        print(key_document(), end="")
    elif args.what == "datasets":
        from mllm.config.dataset_document import dataset_document

        print(dataset_document(), end="")
    elif args.what == "families":
        from mllm.report.families import family_document, untested_families

        print(family_document(), end="")
        if args.untested:
            print(f"\n{untested_families()}")
    elif args.what == "config":
        if args.tiny:
            quiet_progress()
        from mllm.run.prepare import prepare_args

        print(prepare_args(args.config, args.cfg_options, tiny=args.tiny)[0].text, end="")
    else:
        quiet_progress()
        from mllm.run.sample import show_sample

        options = dict(tiny=args.tiny, split=args.split, index=args.index, color=sys.stdout.isatty())
        print(show_sample(args.config, args.cfg_options, **options))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("show", "Show registries, a resolved config, or an encoded sample.")
    what = parser.add_subparsers(
        dest="what", required=True, metavar="{registries,keys,datasets,families,config,sample}"
    )
    what.add_parser("registries", help="every name that a config can use, with one sentence")
    what.add_parser("keys", help="all keys of a config with types and defaults, as in config/README.md")
    what.add_parser("datasets", help="the options of all datasets, as in config/DATASETS.md")
    families = what.add_parser("families", help="architectures and what they support, as in config/FAMILIES.md")
    families.add_argument("--untested", action="store_true", help="also list installed architectures without a test")
    config = what.add_parser("config", help="the config as a run writes it into its folder")
    summary = "one sample as tokens, supervised ones in green, or as views and measures"
    sample = what.add_parser("sample", help=summary, description=SAMPLE)
    for subparser in (config, sample):
        subparser.add_argument("config", help="a config file")
        subparser.add_argument("--tiny", action="store_true", help="replace checkpoints and absent data by tiny ones")
        add_override_option(subparser)
    sample.add_argument("--split", default="train", help="train, validation or test")
    sample.add_argument("--index", type=int, default=0, help="index of the row, from 0; negative: from the end")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
