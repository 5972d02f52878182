"""Detection of the hardware, and checks of the installed packages."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mllm.errors import ConfigError
from mllm.packages import import_packages

Precision = Literal["fp32", "bf16", "fp16"]
CHECKOUT = Path(__file__).resolve().parents[2]
"""Folder that holds `mllm` and `config`."""
MINIMUM_VERSIONS = {"transformers": "5.18", "tokenizers": "0.23.1", "peft": "0.20"}
"""Oldest supported versions. Transformers 5 introduced the present layout of Gemma 3 and requires the others."""
DRIVER_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg", "/dev/kfd", "/dev/nvmap")
"""Files of a GPU driver on Linux: NVIDIA, Windows Subsystem for Linux, AMD, Jetson."""
REPORTED_PACKAGES = (
    *("torch", "torchvision", "transformers", "tokenizers", "peft", "accelerate", "bitsandbytes", "mmengine", "numpy"),
    *("pillow", "safetensors", "sentencepiece", "timm", "pydicom", "nibabel", "av", "pycocotools", "mllm-medical"),
)
MATCHING_PAIR = (
    "install the matching pair of the default builds: pip install --upgrade --force-reinstall torch torchvision"
)


@dataclass(frozen=True)
class Hardware:
    """Hardware and precision of a run."""

    device: Literal["cpu", "cuda", "disk", "planned"]
    """`disk`: large weights stay in their files until they are used, and the rest is on the CPU. `planned`: a model has
    no weights, to predict the memory of its training."""
    name: str
    """Name of the GPU, or of the processor architecture."""
    capability: tuple[int, int] | None
    """CUDA compute capability; None on a CPU."""
    memory: int
    """Bytes of one GPU; 0 on a CPU."""
    count: int
    """Number of GPUs; 0 on a CPU."""
    host_memory: int
    """Bytes of main memory."""
    cores: int
    """CPU cores available to this process."""
    precision: Precision = "fp32"
    """fp32: all tensors. bf16: base weights in bf16, adapters in fp32, autocast. fp16: base weights in fp16, 8 or 4
    bits, residual stream and adapters in fp32, no autocast."""


def detect() -> Hardware:
    """Return the hardware of this process; if its GPUs differ, the one with the lowest compute capability.

    PyTorch is not imported on a machine without a GPU driver.
    """
    import psutil

    host = psutil.virtual_memory().total
    # A container or `taskset` may leave fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    cpu = Hardware("cpu", f"CPU ({platform.machine()})", None, 0, 0, host, cores)
    if "torch" not in sys.modules and not has_gpu_driver():
        return cpu
    import torch

    if not torch.cuda.is_available():
        return cpu
    count = torch.cuda.device_count()
    cards = [torch.cuda.get_device_properties(index) for index in range(count)]
    weakest = min(cards, key=lambda card: (card.major, card.minor, card.total_memory))
    capability = (weakest.major, weakest.minor)
    return Hardware("cuda", weakest.name, capability, weakest.total_memory, count, host, cores)


def has_gpu_driver() -> bool:
    """Return False if no GPU driver that PyTorch can use is installed on this machine."""
    if any(os.path.exists(file) for file in DRIVER_FILES):
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    versions = ((name, _version(name)) for name in names)
    return {name: version for name, version in versions if version is not None}


@cache
def _version(name: str) -> str | None:
    """Return the version of an installed package. It is parsed once per process: a run reads it several times."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_packages(
    versions: Mapping[str, str] | None = None,
    torchvision_needs: str | None = None,
    load: Callable[[], object] = import_packages,
) -> None:
    """Check that the installed packages work together, and that the operators of torchvision can be loaded.

    Args:
        versions: Package -> version; None: the installed packages.
        torchvision_needs: Version of torch that torchvision requires, such as '==2.9.0'; None: from its metadata.
        load: Function that imports the packages, among them the compiled operators of torchvision.

    Raises:
        ConfigError: A package is missing, too old, or does not fit the others.
    """
    versions = check_versions(versions, torchvision_needs)
    try:
        load()
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        raise ConfigError(
            f"torch {versions['torch']} and torchvision {versions['torchvision']} are not a pair "
            f"({error}): {MATCHING_PAIR}"
        ) from error


def check_versions(
    versions: Mapping[str, str] | None = None, torchvision_needs: str | None = None
) -> Mapping[str, str]:
    """Check the versions of the installed packages without importing them; see `check_packages`.

    Returns:
        Package -> version.

    Raises:
        ConfigError: A package is missing, too old, or does not fit the others.
    """
    if versions is None:
        versions = installed((*MINIMUM_VERSIONS, "torch", "torchvision"))
    _check_minimum(versions)
    if "torch" not in versions or "torchvision" not in versions:
        missing = " and ".join(name for name in ("torch", "torchvision") if name not in versions)
        raise ConfigError(f"{missing} is not installed: {MATCHING_PAIR}")
    _check_pair(versions, _required_torch() if torchvision_needs is None else torchvision_needs)
    return versions


def _check_minimum(versions: Mapping[str, str]) -> None:
    from packaging.version import Version

    old = [
        name
        for name, least in MINIMUM_VERSIONS.items()
        if name not in versions or Version(versions[name]) < Version(least)
    ]
    if not old:
        return
    # transformers is listed too, because an old tokenizers fails inside it with "untagged enum ModelWrapper".
    listed = [name for name in MINIMUM_VERSIONS if name in old or (name != "peft" and old != ["peft"])]
    present = ", ".join(f"{name} {versions.get(name, 'is not installed')}" for name in listed)
    required = " ".join(f"'{name}>={MINIMUM_VERSIONS[name]}'" for name in listed)
    verb = "is" if len(old) == 1 else "are"
    raise ConfigError(f"{' and '.join(old)} {verb} too old (found {present}): run pip install --upgrade {required}")


def _required_torch() -> str:
    """Return the version of torch that the metadata of torchvision requires; '' if it requires none."""
    from packaging.requirements import Requirement

    required = (Requirement(line) for line in metadata.requires("torchvision") or ())
    return next((str(requirement.specifier) for requirement in required if requirement.name == "torch"), "")


def _check_pair(versions: Mapping[str, str], torchvision_needs: str) -> None:
    """Raise `ConfigError` if torch and torchvision are of different releases or builds."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    torch, vision = versions["torch"], versions["torchvision"]
    if not SpecifierSet(torchvision_needs).contains(Version(torch).public, prereleases=True):
        raise ConfigError(
            f"torch {torch} and torchvision {vision} are not a pair (this torchvision needs torch{torchvision_needs}): "
            f"{MATCHING_PAIR}"
        )
    # A build of torch for the CPU cannot load the operators of a torchvision for CUDA.
    if torch.endswith("+cpu") and not vision.endswith("+cpu"):
        raise ConfigError(
            f"torch {torch} and torchvision {vision} are not a pair (torch is built for the CPU only): {MATCHING_PAIR}"
        )


@cache
def git_state() -> dict[str, Any]:
    """Return `git_state_of` the checkout of this code at the first call. A run reads it several times."""
    return git_state_of(CHECKOUT)


def git_state_of(checkout: Path) -> dict[str, Any]:
    """Return the commit of a checkout and whether tracked files differ from it; None outside a git checkout."""
    commit = _output("git", "-C", str(checkout), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": None if commit is None else bool(changes)}


def _output(*command: str) -> str | None:
    """Return the output of a command; None if it cannot be run or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def environment(hardware: Hardware | None = None) -> dict[str, Any]:
    """Return the content of `environment.json`: Python, packages, hardware, driver, git and the command.

    It contains no host name and no user name.
    """
    has_gpu = hardware is None or hardware.device == "cuda"
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if has_gpu else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": installed(REPORTED_PACKAGES),
        "hardware": asdict(hardware or detect()),
        "driver": driver.splitlines()[0] if driver else None,
        "git": git_state(),
        "command": sys.argv,
    }
