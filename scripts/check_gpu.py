"""Check of a machine with a GPU in about ten minutes: what the card supports, correctness, memory and speed.

python scripts/check_gpu.py [--cpu] [--output gpu_check] [--only NAME ...]

It writes `gpu_check.md` and `gpu_check.json`, which contain no name of a user or a machine and no path. Each check runs
in a process of its own and becomes a row; one that fails does not stop the others. The exit code is 1 if one failed.
Without a GPU, or with --cpu, all runs are tiny and on the CPU, which tests this script.
"""

from __future__ import annotations

import argparse
import getpass
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from time import monotonic
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (0, 1)]

from gpu_checks import CHECKS
from gpu_runs import CHECKOUT, Machine, Row, as_dict, guarded

from mllm.config.hardware import Hardware, detect, installed
from mllm.files import write_json, write_text

LIMIT = 400
"""Seconds of one check."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def main(argv: Sequence[str]) -> int:
    """Run the checks, write both files, and return the exit code."""
    arguments = parse(argv)
    hardware = detect()
    device = "cpu" if arguments.cpu else hardware.device
    output = Path(arguments.output)
    names = arguments.only or list(CHECKS)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
        machine = Machine(device, Path(arguments.worker or temporary).resolve(), hardware.capability or (0, 0))
        for name in names:
            start = monotonic()
            row = checked(name, machine, isolated=machine.is_gpu and arguments.worker is None)
            row.figures["seconds"] = monotonic() - start
            row.text = anonymous(row.text, machine.folder)
            rows.append(row)
            print(f"{row.result:8} {row.check}: {row.text}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    facts = facts_of(hardware, device)
    write_json(output / "gpu_check.json", {**facts, "rows": [as_dict(row) for row in rows]})
    write_text(output / "gpu_check.md", table(facts, rows))
    counts = Counter(row.result for row in rows)
    print(
        f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped: {output / 'gpu_check.md'}"
    )
    return int(counts["failed"] > 0)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="test the script on the CPU")
    parser.add_argument("--output", default="gpu_check", help="folder of both files (default: gpu_check)")
    parser.add_argument("--work", help="folder of temporary files; 9 GB for the weights (default: that of the system)")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="NAME", help="names of checks in the table")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # folder of the process that started this one
    return parser.parse_args(argv)


def checked(name: str, machine: Machine, isolated: bool) -> Row:
    """Return the row of a check. Isolated, it runs in a process of its own, which may be aborted."""
    log = machine.folder / "log.txt"
    if not isolated:
        with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
            return guarded(name, CHECKS[name], machine)
    answer = machine.folder / "answer"
    command = [sys.executable, __file__, "--only", name, "--worker", str(machine.folder), "--output", str(answer)]
    command += [] if machine.is_gpu else ["--cpu"]
    (answer / "gpu_check.json").unlink(missing_ok=True)
    try:
        with log.open("a") as file:
            code = subprocess.run(command, stdout=file, stderr=file, timeout=LIMIT, check=False).returncode
    except subprocess.TimeoutExpired:
        return Row(name, "failed", f"it did not end within {LIMIT} seconds")
    try:
        (row,) = json.loads((answer / "gpu_check.json").read_text(encoding="utf-8"))["rows"]
    except OSError:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return Row(name, "failed", f"its process ended with exit code {code}: {' '.join(last)[:300]}")
    return Row(**row)


def anonymous(text: str, folder: Path) -> str:
    """Return a text without paths, the name of the user and that of the machine."""
    for part in (str(folder), str(CHECKOUT), str(Path.home())):
        text = text.replace(part, "...")
    text = re.sub(r"(?<![\w.])/[\w.-]+(?:/[\w.-]+)+", "...", text)
    names = [name for name in (platform.node(), user()) if len(name) > 1]
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", text)
    return text.replace("|", "/")


def user() -> str:
    """Return the name of the user; empty if the system does not know it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def facts_of(hardware: Hardware, device: str) -> dict[str, Any]:
    """Return what the files say about the machine."""
    driver = gpu_driver() if device == "cuda" else ""
    versions = {name: version for name, version in installed(PACKAGES).items() if version}
    name = hardware.name if device == "cuda" else "CPU"
    return {"device": name, "driver": driver, "system": platform.system(), "packages": versions}


def gpu_driver() -> str:
    """Return the version of the driver; empty without `nvidia-smi`."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return output.strip().partition("\n")[0]


def table(facts: dict[str, Any], rows: Iterable[Row]) -> str:
    """Return the Markdown table."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    driver = f", driver {facts['driver']}" if facts["driver"] else ""
    lines = [f"`check_gpu.sh` on {facts['device']}{driver}, {facts['system']}; {packages}", ""]
    lines += ["| check | result | details | seconds |", "|---|---|---|---|"]
    lines += [f"| {row.check} | {row.result} | {row.text} | {row.figures['seconds']:.0f} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
