"""Writes the `Modelfile` with which Ollama runs exported GGUF files, and their card where they have none.

python mllm/pipeline/modelfile.py --model exp/X/latest/merged --gguf out/model.gguf
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline.command import command_parser, run_command


def main(argv: Sequence[str]) -> int:
    """Writes the files and prints where the Modelfile lies."""
    arguments = parse(argv)
    print(write_modelfile(arguments))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("modelfile", "Write an Ollama Modelfile for exported GGUF files.")
    parser.add_argument("--model", required=True, help="the folder that was exported: a merged model or an adapter")
    parser.add_argument("--gguf", required=True, help="the weights as a GGUF file; the base's beside --adapter-gguf")
    parser.add_argument("--mmproj", help="the GGUF file of the vision tower")
    parser.add_argument("--adapter-gguf", help="the GGUF file of a LoRA")
    parser.add_argument("--out", help="the file to write; 'Modelfile' beside --gguf unless given")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest word")
    for name, kind in (("top-p", float), ("top-k", int), ("min-p", float), ("repetition-penalty", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--max-new-tokens", type=int, help="the longest answer")
    parser.add_argument("--max-length", type=int, help="the longest conversation; as in training unless given")
    parser.add_argument("--seed", type=int)
    return parser.parse_args(argv)


def write_modelfile(arguments: argparse.Namespace) -> Path:
    """Writes the Modelfile as the command line says; raises `ConfigError` where a file is missing or no GGUF."""
    from transformers import AutoTokenizer

    from mllm.config.checkpoint import inspect_checkpoint
    from mllm.export.card import card_text, facts_of, terms_of
    from mllm.export.ollama import PARAMETERS, chat_family, modelfile
    from mllm.export.settings import read_settings
    from mllm.family import FAMILIES
    from mllm.files import write_text
    from mllm.models.backbone.loading import explained

    folder, weights = Path(arguments.model), Path(arguments.gguf)
    for option, path in (
        ("gguf", arguments.gguf),
        ("mmproj", arguments.mmproj),
        ("adapter-gguf", arguments.adapter_gguf),
    ):
        if path is None:
            continue
        if not Path(path).is_file():
            raise ConfigError(f"--{option} {path} is no file")
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise ConfigError(f"--{option} {path} is no GGUF file: export.py --format gguf writes one")
    if not folder.is_dir():
        raise ConfigError(f"--model {folder} is no folder")
    with explained(str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = read_settings(folder, type=FAMILIES.reading(inspect_checkpoint(str(folder)).model_type).type)
    out = Path(arguments.out) if arguments.out else weights.with_name("Modelfile")
    generation = {name: vars(arguments)[name] for name in PARAMETERS}
    generation["max_length"] = arguments.max_length or settings.get("max_length")
    card = _text(folder / "README.md")
    text = modelfile(
        chat_family(tokenizer.chat_template),
        _seen_from(out, arguments.gguf),
        mmproj=arguments.mmproj and _seen_from(out, arguments.mmproj),
        adapter=arguments.adapter_gguf and _seen_from(out, arguments.adapter_gguf),
        settings=generation,
        system=settings.get("system"),
        stops=[tokenizer.eos_token],
        license_text=terms_of(card),
    )
    write_text(out, text)
    beside = out.with_name("README.md")
    if not beside.is_file():
        base = card.partition("Base model: `")[2].partition("`")[0] or folder.name
        write_text(beside, card_text("gguf", settings, facts_of(card, base)))
    return out


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _seen_from(out: Path, file: str) -> str:
    """A file as Ollama finds it: relative to the Modelfile."""
    return Path(os.path.relpath(file, out.parent)).as_posix()


if __name__ == "__main__":
    sys.exit(run_command(main))
