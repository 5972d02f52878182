from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from mllm.config.hardware import (
    CHECKOUT,
    MATCHING_PAIR,
    check_packages,
    detect,
    environment,
    git_state,
    git_state_of,
    installed,
)
from mllm.errors import ConfigError

GOOD = {"torch": "2.9.0", "torchvision": "0.24.0", "transformers": "5.18.0", "tokenizers": "0.23.1", "peft": "0.21.0"}


def sentence(changes: dict, needs: str = "==2.9.0", load=lambda: None) -> str:
    with pytest.raises(ConfigError) as excinfo:
        check_packages({**GOOD, **changes}, needs, load)
    return str(excinfo.value)


def test_installed_packages_are_accepted():
    check_packages()
    check_packages(GOOD, "==2.9.0", lambda: None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"transformers": "4.57.1"},
            "transformers is too old (found transformers 4.57.1, tokenizers 0.23.1): run pip install --upgrade "
            "'transformers>=5.18' 'tokenizers>=0.23.1'",
        ),
        (
            {"tokenizers": "0.15.2"},
            "tokenizers is too old (found transformers 5.18.0, tokenizers 0.15.2): run pip install --upgrade "
            "'transformers>=5.18' 'tokenizers>=0.23.1'",
        ),
        (
            {"transformers": "4.40.0", "tokenizers": "0.19.0", "peft": "0.10.0"},
            "transformers and tokenizers and peft are too old (found transformers 4.40.0, tokenizers 0.19.0, peft "
            "0.10.0): run pip install --upgrade 'transformers>=5.18' 'tokenizers>=0.23.1' 'peft>=0.20'",
        ),
        (
            {"peft": "0.10.0"},
            "peft is too old (found peft 0.10.0): run pip install --upgrade 'peft>=0.20'",
        ),
    ],
)
def test_old_packages(changes, expected):
    assert sentence(changes) == expected


def test_a_torch_of_another_version_than_torchvision_requires():
    assert sentence({"torch": "2.8.0"}) == (
        f"torch 2.8.0 and torchvision 0.24.0 are not a pair (this torchvision needs torch==2.9.0): {MATCHING_PAIR}"
    )


def test_a_torch_for_the_cpu_with_a_torchvision_for_cuda():
    assert sentence({"torch": "2.9.0+cpu"}) == (
        f"torch 2.9.0+cpu and torchvision 0.24.0 are not a pair (torch is built for the CPU only): {MATCHING_PAIR}"
    )
    check_packages({**GOOD, "torch": "2.9.0+cpu", "torchvision": "0.24.0+cpu"}, "==2.9.0", lambda: None)


def test_missing_operators():
    def load() -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    assert sentence({}, load=load) == (
        f"torch 2.9.0 and torchvision 0.24.0 are not a pair (operator torchvision::nms does not exist): {MATCHING_PAIR}"
    )


def test_other_errors_of_torchvision_are_not_converted():
    def load() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        check_packages(GOOD, "", load)


def test_a_missing_torchvision():
    versions = {name: version for name, version in GOOD.items() if name != "torchvision"}
    with pytest.raises(ConfigError, match="^torchvision is not installed: install the matching pair"):
        check_packages(versions, "", lambda: None)


def test_detect_matches_torch():
    hardware = detect()
    assert hardware.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert hardware.count == torch.cuda.device_count()
    assert hardware.host_memory > 1 << 28 and hardware.cores >= 1
    assert hardware.precision == "fp32"


def test_detect_takes_the_weakest_card(monkeypatch):
    cards = [
        SimpleNamespace(name="NVIDIA A10G", major=8, minor=6, total_memory=24 << 30),
        SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=15 << 30),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    hardware = detect()
    assert (hardware.name, hardware.capability, hardware.memory, hardware.count) == ("Tesla T4", (7, 5), 15 << 30, 2)


def test_environment_is_json_and_names_no_machine():
    import getpass
    import platform

    values = environment(detect())
    text = json.dumps({key: value for key, value in values.items() if key not in ("command", "platform")})
    assert set(values) == {"python", "platform", "packages", "hardware", "driver", "git", "command"}
    assert values["packages"]["torch"] == installed(["torch"])["torch"]
    assert platform.node() not in text or len(platform.node()) < 4
    assert "hostname" not in text and f"/home/{getpass.getuser()}" not in text


def test_git_state_of_a_checkout(tmp_path):
    assert git_state_of(tmp_path) == {"commit": None, "dirty": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "--no-verify", "-m", "first"], check=True)
    state = git_state_of(tmp_path)
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert git_state_of(tmp_path) == {**state, "dirty": True}
    assert git_state()["commit"] == git_state_of(CHECKOUT)["commit"]
