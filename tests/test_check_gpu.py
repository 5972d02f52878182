"""The CPU mode of `scripts/check_gpu.py`, and the parts that only a GPU uses."""

from __future__ import annotations

import getpass
import json
import platform
import re
from pathlib import Path

import check_gpu
import gpu_checks
import pytest
from gpu_checks import compared
from gpu_runs import CHECKOUT, Machine, Row, Run, SkippedError, guarded
from gpu_tiers import refuse_unsuitable, tier_row, write_checkpoint
from transformers import AutoModelForImageTextToText

from mllm.errors import ConfigError

TIER = "3 steps of medgemma_4gb_test"
LARGER = {"3 steps of medgemma_16gb_medical", "3 steps of medgemma_16gb_ampere"}


def rows_of(*arguments: str, expect: int = 0) -> dict[str, dict]:
    assert check_gpu.main(["--cpu", "--output", "out", *arguments]) == expect
    return {row["check"]: row for row in json.loads(Path("out/gpu_check.json").read_text())["rows"]}


def test_all_checks_run_on_a_cpu_and_their_files_can_be_published(folder):
    names = [name for name in gpu_checks.CHECKS if name not in LARGER]
    rows = rows_of("--only", *names)
    assert list(rows) == names
    skipped = {name for name, row in rows.items() if row["result"] == "skipped"}
    assert skipped == {"fp32", "generation", "flex attention", "liger"}, "they need a GPU"
    assert {row["result"] for row in rows.values()} == {"passed", "skipped"}
    assert rows["bf16"]["figures"]["difference"] > 0 and rows["4-bit"]["figures"]["difference"] > 0, "other weights"
    figures = rows[TIER]["figures"]
    assert len(figures["losses"]) == 3 and figures["tokens_per_second"] > 0 and figures["planned"] > 0
    text = Path("out/gpu_check.md").read_text()
    assert len(re.findall(r"^\| .* \| (?:passed|skipped) \| ", text, re.MULTILINE)) == len(names)
    for content in (text, Path("out/gpu_check.json").read_text()):
        assert str(folder) not in content and str(CHECKOUT) not in content
        assert not re.search(rf"(?<!\w)(?:{getpass.getuser()}|{re.escape(platform.node())})(?!\w)", content)


def test_a_failed_check_is_a_row_without_paths_and_the_others_go_on(folder, monkeypatch):
    def failing(machine: Machine) -> Row:
        raise ConfigError(f"'{machine.folder}/x' of {getpass.getuser()} in /etc/some/place is missing |")

    monkeypatch.setitem(gpu_checks.CHECKS, "resume", failing)
    rows = rows_of("--only", "resume", "card", expect=1)
    assert rows["resume"]["text"] == "'.../x' of ... in ... is missing /"
    assert (rows["resume"]["result"], rows["card"]["result"]) == ("failed", "passed")


def test_a_process_that_dies_is_a_failed_row(tmp_path):
    row = check_gpu.checked("no such check", Machine("cpu", tmp_path), isolated=True)
    assert row.result == "failed"
    assert "its process ended with exit code 2: " in row.text and "invalid choice" in row.text


def test_other_losses_fail():
    reference = Run(Path(), [{"loss": 2.0}, {"loss": 1.0}, {"eval_loss": 9.0}])
    near, far = Run(Path(), [{"loss": 2.0}, {"loss": 1.01}]), Run(Path(), [{"loss": 2.0}, {"loss": 1.1}])
    assert compared("run", near, reference, 0.02).result == "passed"
    assert compared("run", far, reference, 0.02).result == "failed"
    for losses in ([2.0], [2.0, float("nan")]):
        assert compared("run", Run(Path(), [{"loss": loss} for loss in losses]), reference, 1.0).result == "failed"


def test_speed_leaves_out_the_first_update():
    # 100 tokens in 10 s, then 300 in 3 s each, of which a fourth is padding
    rows = [
        {"loss": 1.0, "seconds": 10.0, "tokens_per_second": 10.0, "padding_share": 0.0, "peak_memory_gb": 2.0},
        {"loss": 1.0, "seconds": 13.0, "tokens_per_second": 400 / 13, "padding_share": 0.0, "peak_memory_gb": 3.0},
        {"loss": 1.0, "seconds": 16.0, "tokens_per_second": 525 / 16, "padding_share": 0.25, "peak_memory_gb": 2.5},
    ]
    row = tier_row("4gb", Run(Path(), rows), {"peak": 3.1e9, "rate": 4e12, "flops_per_token": 1e10, "usable": 4e9})
    assert row.result == "passed"
    assert row.figures["tokens_per_second"] == pytest.approx((700 - 100) / 6)
    assert row.figures["mfu"] == pytest.approx(100 * 1e10 / 4e12)
    assert "peak 3.00 GB, plan 3.10 GB, 100 tokens/s, MFU 25.0% of 4.0" in row.text


def test_a_checkpoint_of_random_weights_is_loaded_by_transformers(folder, tiny_medgemma):
    base = CHECKOUT / "config/_base_"
    Path("run.py").write_text(
        f'_base_ = ["{base}/models/medgemma.py", "{base}/datasets/dummy.py", "{base}/runtime/finetune.py"]\n'
        f"model_args = dict(model_name_or_path={str(tiny_medgemma)!r})"
    )
    write_checkpoint("run.py", folder / "weights")
    model, report = AutoModelForImageTextToText.from_pretrained("weights", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tensors = dict(model.named_parameters())
    assert all(tensor.std() > 0 for tensor in tensors.values() if tensor.ndim > 1)
    norm = next(tensor for name, tensor in tensors.items() if name.endswith("layer_norm1.weight"))
    assert (norm == 1).all()


def test_a_full_disk_and_an_unsuitable_card_are_skipped_with_the_reason(tmp_path):
    def needs_more(machine: Machine) -> Row:
        raise SkippedError("random weights need 8.6 GB of disk")

    row = guarded("tier", needs_more, Machine("cuda", tmp_path, (7, 5)))
    assert (row.result, row.text) == ("skipped", "random weights need 8.6 GB of disk")
    with pytest.raises(SkippedError, match=r"compute capability 8\.0"):
        refuse_unsuitable("medgemma_16gb_ampere", Machine("cuda", tmp_path, (7, 5)))
    assert guarded("bf16", gpu_checks.bf16, Machine("cuda", tmp_path, (7, 5))).result == "skipped"
