"""Command `mllm launch`: start a command in several processes, as torchrun does, and end with the cause of a failure.

mllm launch --nproc_per_node=8 train my_run.py
python mllm/pipeline/launch.py --nproc_per_node=2 evaluate --adapter exp/X/latest/adapter --split test
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError, one_line
from mllm.pipeline.command import LAST_CHECKPOINT, LAUNCHED, run_command

COMMAND = Path(__file__).with_name("cli.py")
TRAIN = "train"
HELP = """usage: mllm launch [OPTIONS OF TORCHRUN] COMMAND ...

Starts `mllm COMMAND ...` in several processes. Common options (all: torchrun --help):
  --nproc_per_node N         processes on this machine, usually its number of GPUs (default: 1)
  --nnodes N                 number of machines; start the command on each of them
  --rdzv_backend c10d        with --nnodes: the machines find each other at
  --rdzv_endpoint HOST:PORT  the first machine and a free port of it
  --rdzv_id NAME             a name that all machines of a run share
  --standalone               one machine; chooses a free port (the default without --master_port)
"""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code, which is that of the process that failed first."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        sys.exit(0)
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    options = torchrun.parse_args(list(argv))
    if options.module or options.no_python:
        raise ConfigError("mllm launch starts commands of mllm: leave out -m and --no_python, and name one, as train")
    options.training_script_args = [options.training_script, *options.training_script_args]
    options.training_script = str(COMMAND)
    os.environ[LAUNCHED] = "1"
    _quiet_torchrun()
    try:
        torchrun.run(options)
    except ChildFailedError as error:
        return _report(error.failures, options.training_script_args[0] == TRAIN)
    except SignalException as error:
        print(f"interrupted by {signal.Signals(error.sigval).name}: all processes were ended", file=sys.stderr)
        return 128 + int(error.sigval)
    except RendezvousError as error:
        raise ConfigError(
            f"the node at --rdzv_endpoint={options.rdzv_endpoint} cannot be reached or has ended, so the processes of "
            "this node were ended: see the message of that node, or start the command on all nodes with one endpoint"
        ) from error
    except (RuntimeError, OSError, ValueError) as error:
        message = f"the processes could not be started ({one_line(str(error))})"
        is_used = "address already in use" in str(error).lower()
        advice = ": choose a free port with --master_port or --rdzv_endpoint" if is_used else ""
        raise ConfigError(message + advice) from error
    return 0


def _quiet_torchrun() -> None:
    """Turn off the log of torchrun about the processes that it ends, which repeats what this command prints."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _report(failures: Mapping[int, Any], is_training: bool) -> int:
    """Print the cause of a failure in one sentence, and return the exit code.

    Args:
        failures: `ProcessFailure` of each process that did not end with 0. Those that torchrun ended are among them.
        is_training: True for the command `train`, whose runs have checkpoints.
    """
    rank = min(failures, key=lambda rank: (failures[rank].exitcode == -signal.SIGTERM, failures[rank].timestamp))
    code, content = int(failures[rank].exitcode), failures[rank].error_file_data["message"]
    if code > 0:
        others = f"process {rank} failed with exit code {code}, and all others were ended"
        print(content["message"] if isinstance(content, Mapping) else others, file=sys.stderr)
        return code
    cause = ": usually the memory of the machine was used up" if -code == signal.SIGKILL else ""
    advice = f"; {LAST_CHECKPOINT}" if is_training else ""
    print(f"process {rank} was ended by {signal.Signals(-code).name}{cause}{advice}", file=sys.stderr)
    return 128 - code


if __name__ == "__main__":
    sys.exit(run_command(main))
