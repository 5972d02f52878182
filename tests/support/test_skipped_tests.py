"""Tests of `skipped_tests`."""

import re

import pytest
from skipped_tests import PACKAGES, how_to_run


def test_tests_without_a_package_are_counted_by_the_command_that_installs_it():
    for package in ("llama_cpp", "nbclient"):
        with pytest.raises(pytest.skip.Exception) as skipped:
            pytest.importorskip(f"{package}_which_does_not_exist")
        assert "1 skipped tests need packages" in how_to_run([str(skipped.value)])
    line = how_to_run(["could not import 'llama_cpp': No module named 'llama_cpp'"] * 2 + ["needs a GPU"])
    assert line == "2 skipped tests need packages; run them with: 2 by `bash scripts/setup.sh --parity`"
    assert how_to_run(["needs a GPU"]) == ""


def test_the_commands_exist(pytestconfig):
    setup = (pytestconfig.rootpath / "setup.py").read_text()
    parity = (pytestconfig.rootpath / "scripts" / "setup.sh").read_text()
    assert "--parity" in parity and len(PACKAGES) >= 2
    assert all(f'"{command.split("[")[1].split("]")[0]}"' in setup for command in PACKAGES if "[" in command)


def test_every_package_that_a_test_may_lack_has_a_command(pytestconfig):
    names = set()
    for path in (pytestconfig.rootpath / "tests").rglob("*.py"):
        names.update(re.findall(r'importorskip\("([\w.]+)"', path.read_text()))
    assert {"gradio", "pandas"} <= names
    assert [name for name in sorted(names) if not how_to_run([f"could not import '{name}': No module named"])] == []
