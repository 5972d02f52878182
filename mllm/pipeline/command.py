"""Command lines, logging, error messages and exit codes of the commands."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import logging
import math
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm
from typing_extensions import override

from mllm.config.schema import RunConfig
from mllm.config.training_args import training_fields
from mllm.errors import ConfigError, UserError, hint, is_out_of_memory
from mllm.files import is_disk_full

IMPORT = "--import"
CONFIG_OPTION = "--cfg-options"
SECTIONS = tuple(field.name for field in dataclasses.fields(RunConfig) if field.name.endswith("_args"))
"""Sections of a config."""
USER_ERROR = 2
"""Exit code for errors that the user can correct; argparse uses the same for an invalid command line."""
OTHERS_WAIT = 3.0
"""Seconds that a process waits before it reports the loss of another one, or, under torchrun, an error of its own."""
LAUNCHED = "MLLM_LAUNCHED"
"""Variable of the processes of `mllm launch`, which prints their errors."""
LAST_CHECKPOINT = "--resume continues from the newest complete checkpoint"
LOST = r"(?i)gloo.*(connection|timed out|peer)|connection closed by peer|connection reset by peer"
"""Messages of collective operations on a CPU whose other process has ended."""
INTERRUPTED = 130
"""Exit code of shells for a program that Ctrl-C ended."""


class _Handler(logging.Handler):
    """Handler that writes lines to standard error without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _Formatter(logging.Formatter):
    """Formatter of the message alone, with the level before warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno > logging.INFO else text


def _is_of_a_gpu(record: logging.LogRecord) -> bool:
    """Return False for DeepSpeed's warning at its import on a machine without a GPU."""
    return "Setting accelerator to CPU" not in record.getMessage()


def setup_logging() -> None:
    """Log messages of mllm from INFO on and of other packages from WARNING on to standard error."""
    logger = logging.getLogger("mllm")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        handler = _Handler()
        handler.setFormatter(_Formatter("%(message)s"))
        logger.addHandler(handler)
    if os.environ.get("RANK", "0") == "0":  # set by torchrun
        logger.setLevel(logging.INFO)
    else:  # the first process logs the same, except for the rows that other processes read
        logger.setLevel(logging.ERROR)
        logging.getLogger("mllm.dataset.readers").setLevel(logging.WARNING)
    for name in ("bitsandbytes", "mmengine", "torchao", "kernels"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed, which accelerate imports, sets the level of its logger itself and writes to the standard output.
    logging.getLogger("DeepSpeed").addFilter(_is_of_a_gpu)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for module in ("mmengine", "bitsandbytes", "kernels", "pkg_resources", "torch.utils.tensorboard"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    # Losses do not depend on the number of workers, and a number for a larger machine is not an error of the config.
    warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)


def quiet_progress() -> None:
    """Turn off the progress bars of transformers for loading and writing, but not those of downloads."""
    import huggingface_hub.utils
    import transformers.utils.logging

    silent = huggingface_hub.utils.are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()  # also turns off those of downloads
    if not silent:
        huggingface_hub.utils.enable_progress_bars()


class _Parser(argparse.ArgumentParser):
    """Parser that reports a misspelled option with the nearest known one before missing options."""

    @override
    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        given = [str(argument) for argument in (sys.argv[1:] if args is None else args)]
        arguments = [argument.partition("=")[0] for argument in given]
        options = [name for action in self._actions for name in action.option_strings]
        if self._subparsers is None:
            for argument in arguments:
                if re.fullmatch(r"--[a-z][\w-]*", argument) and argument not in options:
                    key = argument.removeprefix("--").replace("-", "_")
                    if CONFIG_OPTION in options and key in training_fields():
                        self.error(f"there is no option {argument}: write {CONFIG_OPTION} training_args.{key}=VALUE")
                    self.error(f"there is no option {argument}{hint(argument, options)}")
            for key in self._misplaced_keys(given) if CONFIG_OPTION in options else ():
                self.error(f"{key} is a key of the config: write {CONFIG_OPTION} {key}=VALUE")
        return super().parse_known_args(args, namespace)

    def _misplaced_keys(self, given: Sequence[str]) -> Iterator[str]:
        """Yield the keys of a config among the arguments that are neither values of an option nor files."""
        counts = {name: action.nargs for action in self._actions for name in action.option_strings}
        expected = 0.0
        for argument in given:
            name, is_assignment, _ = argument.partition("=")
            if argument.startswith("-"):
                count = 0 if is_assignment else counts.get(name, 0)
                expected = count if isinstance(count, int) else math.inf if count in ("+", "*") else 1
            elif expected:
                expected -= 1
            elif re.fullmatch(rf"({'|'.join(SECTIONS)})\.[\w.]+", name) and not Path(argument).exists():
                yield name

    @override
    def error(self, message: str) -> NoReturn:
        """Print the message without the list of all options, which would hide it, and exit."""
        self.exit(USER_ERROR, f"{self.prog}: error: {message}\n`{self.prog} --help` shows the options\n")


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of the command `name`. Its usage is `mllm NAME` if the console script was started."""
    return _Parser(
        prog=f"mllm {name}" if Path(sys.argv[0]).stem == "mllm" else None,
        description=description,
        epilog="An error is reported as one sentence; --debug also shows the traceback. --import MODULE imports a "
        "module first, for example one that registers a model family.",
        allow_abbrev=False,
    )


def add_override_option(parser: argparse.ArgumentParser, example: str | None = None) -> None:
    """Add `--cfg-options`, which overrides keys of a config; `example` is shown in the help."""
    parser.add_argument(
        CONFIG_OPTION,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override keys" if example is None else f"override keys: {example}",
    )


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run `main(argv)` and return the exit code. Errors that the user can correct are printed as one sentence.

    `--debug`, anywhere in `argv`, also shows the traceback. `--import MODULE` imports a module first, such as one that
    registers the model family of an adapter. Other errors are defects and are raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    setup_logging()
    try:
        return main(_import_plugins([argument for argument in arguments if argument != "--debug"]))
    except KeyboardInterrupt as error:
        if debug:
            traceback.print_exc()
        print(f"interrupted; {str(error) or 'files that were saved before are complete'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the pipe (`| head`) has ended; flushing at exit would raise the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        _report(message, is_lost_process(error))
        return USER_ERROR


def _report(message: str, is_lost: bool) -> None:
    """Print a message. In a process of torchrun or `mllm launch`, give it to that program, which shows it at its end.

    All processes of a run usually have the same error, or lose the process that has one. They wait before they print
    it, so that the launcher ends them when the other one has reported its own.
    """
    file, is_launched = os.environ.get("TORCHELASTIC_ERROR_FILE"), LAUNCHED in os.environ
    if file:
        if is_lost or (os.environ.get("RANK", "0") != "0" and not is_launched):
            time.sleep(OTHERS_WAIT)
        content = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        Path(file).write_text(json.dumps({"message": content}), encoding="utf-8")
    if not (file and is_launched):
        print(message, file=sys.stderr)


def _import_plugins(arguments: list[str]) -> list[str]:
    """Import the modules of `--import MODULE` from the current directory or PYTHONPATH; return the other arguments."""
    while IMPORT in arguments:
        index = arguments.index(IMPORT)
        modules = arguments[index + 1 : index + 2]
        if not modules:
            raise ConfigError(f"{IMPORT} needs the name of a module, such as {IMPORT} my_family")
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            importlib.import_module(modules[0])
        except ImportError as error:
            raise ConfigError(f"{IMPORT} {modules[0]} failed in {Path.cwd()} and on PYTHONPATH: {error}") from error
        arguments = arguments[:index] + arguments[index + 2 :]
    return arguments


def explain(error: BaseException) -> str | None:
    """Return the message for an error that the user can correct, or None for a defect."""
    if isinstance(error, UserError):
        return str(error)
    if is_disk_full(error):
        return _full_disk(error.filename if isinstance(error, OSError) else None)
    if is_lost_process(error):
        return (
            f"process {os.environ.get('RANK', '0')} ends, because another process ended or did not answer; the message "
            f"of that process has the cause, and {LAST_CHECKPOINT}"
        )
    if is_out_of_memory(error):
        device = "on the GPU" if type(error).__name__ == "OutOfMemoryError" else "on the host"
        return (
            f"out of memory {device}: load the model in 4 bits, lower the batch size, max_length or image_token_len, "
            "or close other programs that use memory"
        )
    return None


def is_lost_process(error: BaseException) -> bool:
    """Return True for an error of a collective operation whose other process is gone."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and re.search(LOST, str(error)) is not None


def _full_disk(path: str | None) -> str:
    """Return the message for a full disk. Incomplete files have temporary names and never replace complete ones."""
    action = f"while writing {path}" if path else "while writing"
    return (
        f"the disk is full {action}: free some space and run again; files and checkpoints that were complete are kept "
        "(finetune.py --resume continues from the newest checkpoint)"
    )
