"""The console script `mllm`: one subcommand for each pipeline."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError, hint
from mllm.pipeline.command import run_command

COMMANDS = {
    "train": ("mllm.pipeline.finetune", "train what a config describes"),
    "evaluate": ("mllm.pipeline.evaluate_model", "answer a split of a config and take its figures"),
    "predict": ("mllm.pipeline.predict", "answer questions about images"),
    "merge": ("mllm.pipeline.merge", "fold an adapter into its base model"),
    "modelfile": ("mllm.pipeline.modelfile", "write the Modelfile with which Ollama runs exported GGUF files"),
    "push": ("mllm.pipeline.push", "push an adapter, a merged model or GGUF files to the Hugging Face Hub"),
    "export": ("mllm.pipeline.export", "write a model or an adapter as GGUF files for llama.cpp"),
    "convert": ("mllm.pipeline.convert", "bring the weights of another layout into that of transformers"),
    "matformer": ("mllm.pipeline.matformer", "cut a smaller model out of a Gemma 3n, without training"),
    "plan": ("mllm.pipeline.plan", "tell what a private training would cost before it begins"),
    "show": ("mllm.pipeline.show", "show registries, a resolved config, or an encoded sample"),
}
"""Subcommand -> the module whose `main` it is, and what it does."""


def main(argv: Sequence[str]) -> int:
    """Hands the arguments after the subcommand to its pipeline, which is imported only now."""
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        print("usage: mllm COMMAND ... [--debug]\n")
        for name, (_, sentence) in COMMANDS.items():
            print(f"  {name:10} {sentence}")
        print("\n`mllm COMMAND --help` shows the options of one.")
        return 0
    if command not in COMMANDS:
        raise ConfigError(f"unknown command '{command}'{hint(command, COMMANDS)}")
    pipeline = importlib.import_module(COMMANDS[command][0])
    return int(pipeline.main(rest))


def run() -> int:
    """The entry point of the console script."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
