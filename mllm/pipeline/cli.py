"""The console script `mllm`: one subcommand for each command."""

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
    "train": ("mllm.pipeline.finetune", "train the model of a config"),
    "launch": ("mllm.pipeline.launch", "start a command in several processes, on one or several machines"),
    "evaluate": ("mllm.pipeline.evaluate_model", "evaluate a model on a split of a config"),
    "compare": ("mllm.pipeline.compare", "compare runs on their common samples"),
    "report": ("mllm.pipeline.report", "write report.html of a run or an evaluation again"),
    "predict": ("mllm.pipeline.predict", "answer questions about images"),
    "serve": ("mllm.pipeline.serve", "answer requests of OpenAI's clients"),
    "ui": ("mllm.pipeline.ui", "show a page in the browser for questions about images"),
    "merge": ("mllm.pipeline.merge", "merge an adapter into its base model"),
    "modelfile": ("mllm.pipeline.modelfile", "write the Modelfile that Ollama needs for exported GGUF files"),
    "push": ("mllm.pipeline.push", "push an adapter, a merged model or GGUF files to the Hugging Face Hub"),
    "export": ("mllm.pipeline.export", "write a model or an adapter as GGUF files for llama.cpp"),
    "convert": ("mllm.pipeline.convert", "convert weights of other layouts to the layout of transformers"),
    "matformer": ("mllm.pipeline.matformer", "cut a smaller model out of a Gemma 3n, without training"),
    "plan": ("mllm.pipeline.plan", "predict memory, time and cost of a training, or the noise of a private one"),
    "data": ("mllm.pipeline.data", "check all rows and images of a config, and show them on a page"),
    "show": ("mllm.pipeline.show", "show registries, a resolved config, or an encoded sample"),
}
"""Subcommand -> the module with its `main`, and a description."""


def main(argv: Sequence[str]) -> int:
    """Import the module of the subcommand and pass the remaining arguments to its `main`."""
    command, *arguments = argv or ["--help"]
    if command in ("-h", "--help"):
        print("usage: mllm COMMAND ... [--debug]\n")
        for name, (_, description) in COMMANDS.items():
            print(f"  {name:10} {description}")
        print("\n`mllm COMMAND --help` shows the options of a command.")
        return 0
    if command not in COMMANDS:
        files = {module.rpartition(".")[2]: name for name, (module, _) in COMMANDS.items()}
        known = f": {command}.py is the command '{files[command]}'" if command in files else hint(command, COMMANDS)
        raise ConfigError(f"unknown command '{command}'{known}")
    module = importlib.import_module(COMMANDS[command][0])
    return int(module.main(arguments))


def run() -> int:
    """Run the console script and return its exit code."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
