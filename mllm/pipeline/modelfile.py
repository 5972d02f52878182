"""Command `mllm modelfile`: write the `Modelfile` with which Ollama runs GGUF files, and a missing model card.

python mllm/pipeline/modelfile.py --model exp/X/latest/merged --gguf out/model.gguf
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.pipeline.command import command_parser, run_command


def main(argv: Sequence[str]) -> int:
    """Write the files and print the path of the Modelfile."""
    arguments = parse(argv)
    from mllm.export.modelfile import GGUFFiles, write_modelfile
    from mllm.export.ollama import PARAMETERS

    mmproj, adapter, out = (
        None if name is None else Path(name) for name in (arguments.mmproj, arguments.adapter_gguf, arguments.out)
    )
    files = GGUFFiles(Path(arguments.gguf), mmproj, adapter)
    generation = {name: vars(arguments)[name] for name in PARAMETERS}
    print(write_modelfile(Path(arguments.model), files, out, generation))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("modelfile", "Write an Ollama Modelfile for exported GGUF files.")
    parser.add_argument("--model", required=True, help="folder that was exported: a merged model or an adapter")
    parser.add_argument("--gguf", required=True, help="weights as a GGUF file; with --adapter-gguf those of the base")
    parser.add_argument("--mmproj", help="GGUF file of the vision tower")
    parser.add_argument("--adapter-gguf", help="GGUF file of a LoRA")
    parser.add_argument("--out", help="file to write (default: Modelfile next to --gguf)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): always the most probable token")
    for name, kind in (("top-p", float), ("top-k", int), ("min-p", float), ("repetition-penalty", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--max-new-tokens", type=int, help="limit of an answer, in tokens")
    parser.add_argument("--max-length", type=int, help="limit of a conversation, in tokens (default: as in training)")
    parser.add_argument("--seed", type=int)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
