"""The end of a command: its result, or one message on standard error and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mllm.errors import DataError
from mllm.files import write_text
from mllm.pipeline import finetune
from mllm.pipeline.command import INTERRUPTED, USER_ERROR, add_override_option, command_parser, run_command


def _raising(error: BaseException) -> object:
    def main(argv: Sequence[str]) -> int:
        raise error

    return main


def _run(error: BaseException, *argv: str) -> int:
    return run_command(_raising(error), argv)  # type: ignore[arg-type]


def test_a_wrong_command_line_is_one_message_without_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_parser("predict", "Answer questions.")
    for number in range(20):
        parser.add_argument(f"--option-{number}")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--option-3"])
    message, advice = capsys.readouterr().err.splitlines()
    assert message.endswith(": error: argument --option-3: expected one argument")
    assert advice == f"`{parser.prog} --help` shows the options"


def test_a_result_is_passed_on() -> None:
    assert run_command(lambda argv: len(argv), ["a", "b"]) == 2
    assert run_command(lambda argv: len(argv), ["a", "--debug"]) == 1


def test_errors_of_the_user_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(DataError("rows.jsonl, line 3: image a.png does not exist")) == USER_ERROR == 2
    captured = capsys.readouterr()
    assert captured.err == "rows.jsonl, line 3: image a.png does not exist\n"
    assert captured.out == ""


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(DataError("a sentence"), "--debug") == 2
    output = capsys.readouterr().err
    assert "Traceback" in output
    assert output.endswith("\na sentence\n")


def test_an_interruption_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(KeyboardInterrupt()) == INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted; files that were saved before are complete\n"
    _run(KeyboardInterrupt("7 updates were made"))
    assert capsys.readouterr().err == "interrupted; 7 updates were made\n"


def test_a_full_disk_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)

    def main(argv: Sequence[str]) -> int:
        write_text(tmp_path / "report.json", "{}")
        return 0

    assert run_command(main, []) == 2
    output = capsys.readouterr().err
    assert f"the disk is full while writing {tmp_path / 'report.json'}: free some space" in output
    assert "files and checkpoints that were complete are kept" in output


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
@pytest.mark.parametrize("count", [1, 100_000])
def test_a_full_disk_in_a_writer_of_weights_is_reported(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        torch.save({"a": torch.zeros(count)}, "/dev/full")
        return 0

    assert run_command(main, []) == 2
    assert _run(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")) == 2
    assert capsys.readouterr().err.count("the disk is full while writing: free some space") == 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_says_what_to_lower(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(error) == 2
    output = capsys.readouterr().err
    assert output.startswith("out of memory")
    assert "max_length" in output
    assert output.count("\n") == 1


def test_our_own_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        _run(ZeroDivisionError())


def test_argparse_keeps_its_exit_code() -> None:
    with pytest.raises(SystemExit) as excinfo:
        _run(SystemExit(2))
    assert excinfo.value.code == 2


def test_warnings_are_marked_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        logger = logging.getLogger("mllm.somewhere")
        logger.info("loading %s", "a")
        logger.warning("odd")
        logger.debug("unseen")
        return 0

    run_command(main, [])
    captured = capsys.readouterr()
    assert captured.err == "loading a\nwarning: odd\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("argument", "end"),
    [
        ("--max_steps=2", "there is no option --max_steps: write --cfg-options training_args.max_steps=VALUE"),
        ("--output-dir", "there is no option --output-dir: write --cfg-options training_args.output_dir=VALUE"),
        ("training_args.max_steps=2", "write --cfg-options training_args.max_steps=VALUE"),
    ],
)
def test_a_key_of_the_config_as_an_option_names_the_option_for_keys(
    capsys: pytest.CaptureFixture[str], argument: str, end: str
) -> None:
    with pytest.raises(SystemExit):
        finetune.parse(["run.py", argument])
    assert end in capsys.readouterr().err
    parsed = finetune.parse(["run.py", "--cfg-options", "training_args.max_steps=2"])
    assert parsed.cfg_options == ["training_args.max_steps=2"]


@pytest.mark.parametrize("name", ["lora_args.py", "model_args.py"])
def test_a_config_file_with_the_name_of_a_section_is_no_key(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model_args.py").touch()
    assert finetune.parse([name, "--resume"]).config == name


def test_values_of_options_are_no_keys(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_parser("predict", "Answer questions.")
    parser.add_argument("--out")
    parser.add_argument("--files", nargs="*")
    parser.add_argument("--fast", action="store_true")
    add_override_option(parser)
    parsed = parser.parse_args(["--out", "data_args.json", "--files", "data_args.a", "data_args.b"])
    assert (parsed.out, parsed.files) == ("data_args.json", ["data_args.a", "data_args.b"])
    for before in (["--fast"], ["--out", "a"], ["--cfg-options=a=1"]):
        with pytest.raises(SystemExit):
            parser.parse_args([*before, "data_args.packing=True"])
        assert "write --cfg-options data_args.packing=VALUE" in capsys.readouterr().err


def test_the_import_of_deepspeed_writes_nothing_to_the_standard_output():
    """The output of `mllm plan` and others begins with their own lines."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    code = "from mllm.pipeline.command import setup_logging\nsetup_logging()\nimport deepspeed"
    environment = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
