"""Benchmark of memorization: canaries in the training data, with and without privacy.

A tiny model is trained on questions about patients. Some are canaries: a patient number and a random code of six digits
that occurs nowhere else. Two attacks on the trained model are evaluated: the rank of the code of a patient among other
codes (exposure, arXiv:1802.08232), and the distinction of canaries in the data from held-out ones (membership inference
by loss, arXiv:1709.01604). README.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import numpy as np
import torch
from interleaved import machine
from privacy_work import TEMPLATE
from transformers import PrinterCallback, TrainingArguments, set_seed

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator
from mllm.dataset.loading.poisson import PoissonSampler
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.engine.callbacks import Epochs
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.engine.privacy.mechanism import Mechanism
from mllm.engine.privacy.noise import secret_of
from mllm.engine.private_trainer import PrivateTrainer
from mllm.engine.run_log import RunLog
from mllm.engine.trainer import MultimodalTrainer
from mllm.models.builder.build_text import build_causal_lm
from mllm.objectives.text import NextToken
from mllm.protocols import Bundle
from mllm.structures import Context, Sample, Turn
from mllm.tiny.checkpoints import ensure_tiny

DELTA = 1e-4
SITES, FINDINGS = (
    ("left lung", "right lung", "liver", "spleen", "heart"),
    ("normal", "a lesion", "an opacity", "an edema"),
)
DIGITS = 6
"""Digits of a code."""
CODES = 128
"""Number of codes in the ranking of a canary, including its code: the maximum exposure is 7 bits."""


class Rows:
    """Findings, whose answers follow from the question, and canaries, whose answers are random codes."""

    def __init__(self, findings: int, canaries: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        patients = rng.permutation(900_000)[: findings + 2 * canaries] + 100_000
        kinds = rng.integers(0, len(SITES), findings)
        self.findings = [
            self._row(f"What does the {SITES[kind]} of patient {patient} show?", FINDINGS[kind % len(FINDINGS)])
            for patient, kind in zip(patients[:findings], kinds, strict=True)
        ]
        self.questions = [f"What is the code of patient {patient}?" for patient in patients[findings:]]
        codes = rng.integers(0, 10**DIGITS, (2 * canaries, CODES))
        self.codes = [[f"{code:0{DIGITS}d}" for code in row] for row in codes]
        """Codes per canary: first its code, then others."""
        self.rows = self.findings + [self.canary(number) for number in range(canaries)]
        """Training data; the second half of the canaries is held out."""

    @staticmethod
    def _row(question: str, answer: str) -> Sample:
        return Sample([Turn("user", question), Turn("assistant", answer)], source=question)

    def canary(self, number: int, code: int = 0) -> Sample:
        """Return a canary with its code (0) or another one."""
        return self._row(self.questions[number], self.codes[number][code])

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return a row of the training data."""
        return self.rows[index]


def load(folder: str, seed: int) -> Bundle:
    """Load a tiny VaultGemma with a LoRA on all projections."""
    set_seed(seed)
    path = str(ensure_tiny("vaultgemma", folder))
    return build_causal_lm(ModelArgs("causal-lm", path, lora_r=32, max_length=64, chat_template=TEMPLATE), detect())


def train(bundle: Bundle, rows: Rows, epsilon: float | None, options: argparse.Namespace, folder: str) -> float | None:
    """Train without privacy (None) or with an epsilon; return the spent epsilon."""
    rate = options.batch / len(rows)
    sampler: Any = LogicalBatchSampler(len(rows), options.batch, seed=options.seed)
    trainer_class: Any = MultimodalTrainer
    private_options: dict[str, Any] = {}
    if epsilon is not None:
        sampler = PoissonSampler([[index] for index in range(len(rows))], rate, secret=secret_of(None))
        mechanism = Mechanism(len(rows), rate, clip_norm=options.clip, delta=DELTA, target_epsilon=epsilon)
        trainer_class, private_options = PrivateTrainer, dict(mechanism=mechanism, synthetic=[])
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=options.steps,
        learning_rate=options.rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        per_device_train_batch_size=options.batch,
        use_cpu=True,
        logging_steps=1000,
        logging_nan_inf_filter=False,
        label_names=[],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=options.seed,
    )
    meter = Meter()
    trainer = trainer_class(
        Learner(bundle.model, {"next_token": NextToken()}, reduction="items" if epsilon is None else "samples"),
        arguments,
        train_dataset=EncodedDataset(rows, bundle.encoder.encode),
        train_sampler=sampler,
        collate=LogicalCollator(bundle.encoder.pad, samples_per_piece=options.batch),
        meter=meter,
        callbacks=[RunLog({"config": "canaries"}, meter), Epochs(sampler)],
        **private_options,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return None if epsilon is None else float(trainer.record["epsilon_spent"])


@torch.no_grad()
def losses(bundle: Bundle, samples: Sequence[Sample]) -> np.ndarray:
    """Return the loss of the answer of each sample in nats, summed over its tokens."""
    bundle.model.eval()
    result = []
    for start in range(0, len(samples), 256):
        batch = bundle.encoder.pad([bundle.encoder.encode(sample) for sample in samples[start : start + 256]])
        result.append(NextToken().total(Context(batch.targets, bundle.model(**batch.student))))
    return torch.cat(result).numpy()


def exposure(code_losses: np.ndarray) -> float:
    """Return log2(codes) - log2(rank of the first code by loss): 0 if it is the least probable of all codes."""
    rank = 1 + int((code_losses[1:] < code_losses[0]).sum())
    return math.log2(len(code_losses)) - math.log2(rank)


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Return the probability that a member has a lower loss than a non-member: the AUC, 0.5 by chance."""
    less = (members[:, None] < others[None]).mean()
    return float(less + 0.5 * (members[:, None] == others[None]).mean())


def work(epsilon: float | None, options: argparse.Namespace) -> dict[str, float | None]:
    """Train one model and evaluate the attacks."""
    rows, new_rows = (Rows(options.findings, options.canaries, options.seed + offset) for offset in (0, 1000))
    with tempfile.TemporaryDirectory() as folder:
        bundle = load(folder, options.seed)
        spent = train(bundle, rows, epsilon, options, folder)
    members_and_others = losses(bundle, [rows.canary(number) for number in range(2 * options.canaries)])
    exposures = [
        exposure(losses(bundle, [rows.canary(number, code) for code in range(CODES)]))
        for number in range(options.canaries)
    ]
    return {
        "spent": spent,
        "exposure": mean(exposures),
        "ranked_first": sum(bits == math.log2(CODES) for bits in exposures) / len(exposures),
        "auc": auc(members_and_others[: options.canaries], members_and_others[options.canaries :]),
        "loss": float(losses(bundle, new_rows.findings[:128]).mean()),
    }


def table(runs: dict[float | None, list[dict[str, float | None]]]) -> str:
    """Return a Markdown table with one line per epsilon: means over seeds with their range."""
    lines = [
        "| | epsilon spent | exposure, bits | codes ranked first | membership, AUC | loss on new findings |",
        "|---|---|---|---|---|---|",
    ]
    for epsilon, seeds in runs.items():
        spent = "infinite" if epsilon is None else f"{max(run['spent'] or 0 for run in seeds):.2f}"
        cells = []
        for key, digits in (("exposure", 2), ("ranked_first", 2), ("auc", 3), ("loss", 2)):
            values = [run[key] or 0.0 for run in seeds]
            cells.append(f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})")
        name = "without privacy" if epsilon is None else f"epsilon {epsilon:g}"
        lines.append(f"| {name} | {spent} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--findings", type=int, default=448)
    parser.add_argument("--canaries", type=int, default=64, help="canaries in the data; the same number is held out")
    parser.add_argument("--epsilon", type=float, nargs="*", default=[8.0, 1.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="output file of all figures (JSON)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    runs: dict[float | None, list[dict[str, float | None]]] = {}
    for seed in range(options.seeds):
        options.seed = seed
        for epsilon in (None, *options.epsilon):
            runs.setdefault(epsilon, []).append(result := work(epsilon, options))
            print(f"seed {seed}, epsilon {epsilon}: {result}", flush=True)
    print(f"\n{table(runs)}\n\n{machine(options.threads)}")
    if options.out:
        figures = {"infinite" if epsilon is None else f"{epsilon:g}": seeds for epsilon, seeds in runs.items()}
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
