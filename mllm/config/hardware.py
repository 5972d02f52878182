"""The machine and the installed packages: found once, with a reason where they cannot work."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mllm.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder that holds `mllm` and `config`."""
MINIMUM = {"transformers": "5.18", "tokenizers": "0.23.1", "peft": "0.20"}
"""The oldest versions that can work: Gemma 3 has its present layout since transformers 5, which asks for the others."""
REPORTED = (
    *("torch", "torchvision", "transformers", "tokenizers", "peft", "accelerate", "bitsandbytes", "mmengine", "numpy"),
    *("pillow", "safetensors", "sentencepiece", "timm", "pydicom", "nibabel", "av", "pycocotools", "mllm-medical"),
)
MATCHING_PAIR = (
    "install the matching pair of the default builds: pip install --upgrade --force-reinstall torch torchvision"
)


@dataclass(frozen=True)
class Hardware:
    """What a run may use."""

    device: Literal["cpu", "cuda", "disk"]
    """`disk`: large weights stay in their files until they are needed, and the rest is on the CPU."""
    name: str
    """The card's name, or the processor's."""
    capability: tuple[int, int] | None
    """CUDA compute capability; None on a CPU."""
    memory: int
    """Bytes on one card; 0 on a CPU."""
    count: int
    """Cards; 0 on a CPU."""
    host_memory: int
    """Bytes of the machine's memory."""
    cores: int
    """Cores that this process may use."""
    precision: Precision = "fp32"
    """fp32: everything. bf16: base weights bf16, adapters fp32, autocast. fp16: base weights fp16, 8-bit or 4-bit,
    residual stream and adapters fp32, never autocast."""


def detect() -> Hardware:
    """The hardware of this process; the weakest of its cards where they differ."""
    import psutil
    import torch

    host = psutil.virtual_memory().total
    # A container or `taskset` may leave fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if not torch.cuda.is_available():
        return Hardware("cpu", f"CPU ({platform.machine()})", None, 0, 0, host, cores)
    count = torch.cuda.device_count()
    cards = [torch.cuda.get_device_properties(index) for index in range(count)]
    weakest = min(cards, key=lambda card: (card.major, card.minor, card.total_memory))
    capability = (weakest.major, weakest.minor)
    return Hardware("cuda", weakest.name, capability, weakest.total_memory, count, host, cores)


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def check_packages(
    versions: Mapping[str, str] | None = None,
    torchvision_needs: str | None = None,
    load: Callable[[], object] = lambda: importlib.import_module("torchvision.ops"),
) -> None:
    """Refuses packages that cannot work together; raises `ConfigError`.

    Args:
        versions: Package -> version; None: what is installed.
        torchvision_needs: The torch that torchvision asks for, such as '==2.9.0'; None: what its metadata says.
        load: Imports torchvision's compiled operators.
    """
    if versions is None:
        versions = installed((*MINIMUM, "torch", "torchvision"))
    _check_minimum(versions)
    if "torch" not in versions or "torchvision" not in versions:
        missing = " and ".join(name for name in ("torch", "torchvision") if name not in versions)
        raise ConfigError(f"{missing} is not installed: {MATCHING_PAIR}")
    _check_pair(versions, _torch_wanted() if torchvision_needs is None else torchvision_needs)
    try:
        load()
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        raise ConfigError(
            f"torch {versions['torch']} and torchvision {versions['torchvision']} are not a pair "
            f"({error}): {MATCHING_PAIR}"
        ) from error


def _check_minimum(versions: Mapping[str, str]) -> None:
    from packaging.version import Version

    old = [name for name, least in MINIMUM.items() if name not in versions or Version(versions[name]) < Version(least)]
    if not old:
        return
    # An old tokenizers fails with "untagged enum ModelWrapper", which reads as if transformers were to blame.
    named = [name for name in MINIMUM if name in old or (name != "peft" and old != ["peft"])]
    have = ", ".join(f"{name} {versions.get(name, 'is not installed')}" for name in named)
    need = " ".join(f"'{name}>={MINIMUM[name]}'" for name in named)
    verb = "is" if len(old) == 1 else "are"
    raise ConfigError(f"{' and '.join(old)} {verb} too old (found {have}): run pip install --upgrade {need}")


def _torch_wanted() -> str:
    """The specifier of torch in torchvision's metadata; '' where it has none."""
    from packaging.requirements import Requirement

    wanted = (Requirement(line) for line in metadata.requires("torchvision") or ())
    return next((str(requirement.specifier) for requirement in wanted if requirement.name == "torch"), "")


def _check_pair(versions: Mapping[str, str], torchvision_needs: str) -> None:
    """A torch for the CPU alone cannot load the operators of a torchvision built for CUDA."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    torch, vision = versions["torch"], versions["torchvision"]
    fits = SpecifierSet(torchvision_needs).contains(Version(torch).public, prereleases=True)
    if not fits:
        raise ConfigError(
            f"torch {torch} and torchvision {vision} are not a pair (this torchvision needs torch{torchvision_needs}): "
            f"{MATCHING_PAIR}"
        )
    if torch.endswith("+cpu") and not vision.endswith("+cpu"):
        raise ConfigError(
            f"torch {torch} and torchvision {vision} are not a pair (one is built for the CPU alone): {MATCHING_PAIR}"
        )


def git_state() -> dict[str, Any]:
    """The checkout's commit and whether tracked files differ from it; None where it is no git checkout."""
    commit = _output("git", "-C", str(CHECKOUT), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(CHECKOUT), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": None if commit is None else bool(changes)}


def _output(*command: str) -> str | None:
    """What a command prints; None where it cannot be run or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def environment(hardware: Hardware | None = None) -> dict[str, Any]:
    """What `environment.json` says: Python, packages, hardware, driver, git and the command; no host name, no user."""
    on_card = hardware is None or hardware.device == "cuda"
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_card else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": installed(REPORTED),
        "hardware": asdict(hardware or detect()),
        "driver": driver.splitlines()[0] if driver else None,
        "git": git_state(),
        "command": sys.argv,
    }
