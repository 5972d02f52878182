"""What a model gives away of single training samples: canaries hidden in its data, without privacy and with it.

A tiny model learns questions about patients. Some are canaries: a patient number and a random code of six digits that
is written nowhere else. Whoever holds the model then asks two questions. How far before other codes does a patient's
own stand (exposure, arXiv:1802.08232)? And which of the canaries, half of which were held out, were in the data
(membership inference by loss, arXiv:1709.01604)? README.md has the figures.
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
from mllm.structures import Bundle, Context, Sample, Turn
from mllm.tiny.checkpoints import ensure_tiny

DELTA = 1e-4
SITES, FINDINGS = (
    ("left lung", "right lung", "liver", "spleen", "heart"),
    ("normal", "a lesion", "an opacity", "an edema"),
)
DIGITS = 6
CODES = 128
"""How many codes a canary's own is ranked among, its own included: the greatest exposure is 7 bits."""


class Rows:
    """Findings, of which what is asked tells the answer, and canaries, of which nothing does."""

    def __init__(self, findings: int, canaries: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        patients = rng.permutation(900_000)[: findings + 2 * canaries] + 100_000
        kinds = rng.integers(0, len(SITES), findings)
        self.findings = [
            self._row(f"What does the {SITES[kind]} of patient {patient} show?", FINDINGS[kind % len(FINDINGS)])
            for patient, kind in zip(patients[:findings], kinds, strict=True)
        ]
        self.asked = [f"What is the code of patient {patient}?" for patient in patients[findings:]]
        drawn = rng.integers(0, 10**DIGITS, (2 * canaries, CODES))
        self.codes = [[f"{code:0{DIGITS}d}" for code in row] for row in drawn]
        """Of each canary: its own code first, then others."""
        self.rows = self.findings + [self.canary(number) for number in range(canaries)]
        """What is trained on: the second half of the canaries is held out."""

    @staticmethod
    def _row(question: str, answer: str) -> Sample:
        return Sample([Turn("user", question), Turn("assistant", answer)], source=question)

    def canary(self, number: int, code: int = 0) -> Sample:
        """A canary with its own code, or with another."""
        return self._row(self.asked[number], self.codes[number][code])

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """A row of the training data."""
        return self.rows[index]


def load(folder: str, seed: int) -> Bundle:
    """A tiny VaultGemma with a LoRA on all projections."""
    set_seed(seed)
    path = str(ensure_tiny("vaultgemma", folder))
    return build_causal_lm(ModelArgs("causal-lm", path, lora_r=32, max_length=64, chat_template=TEMPLATE), detect())


def train(bundle: Bundle, rows: Rows, epsilon: float | None, options: argparse.Namespace, folder: str) -> float | None:
    """Trains without privacy, or with an epsilon; gives the epsilon that was spent."""
    rate = options.batch / len(rows)
    sampler: Any = LogicalBatchSampler(len(rows), options.batch, seed=options.seed)
    kind: Any = MultimodalTrainer
    more: dict[str, Any] = {}
    if epsilon is not None:
        sampler = PoissonSampler([[index] for index in range(len(rows))], rate, secret=secret_of(None))
        mechanism = Mechanism(len(rows), rate, clip_norm=options.clip, delta=DELTA, target_epsilon=epsilon)
        kind, more = PrivateTrainer, dict(mechanism=mechanism, synthetic=[])
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
    trainer = kind(
        Learner(bundle.model, {"next_token": NextToken()}, reduction="items" if epsilon is None else "samples"),
        arguments,
        train_dataset=EncodedDataset(rows, bundle.encoder.encode),
        train_sampler=sampler,
        collate=LogicalCollator(bundle.encoder.pad, samples_per_piece=options.batch),
        meter=meter,
        callbacks=[RunLog({"config": "canaries"}, meter), Epochs(sampler)],
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return None if epsilon is None else float(trainer.record["epsilon_spent"])


@torch.no_grad()
def losses(bundle: Bundle, samples: Sequence[Sample]) -> np.ndarray:
    """The loss of each sample's answer in nats, summed over its tokens."""
    bundle.model.eval()
    found = []
    for start in range(0, len(samples), 256):
        batch = bundle.encoder.pad([bundle.encoder.encode(sample) for sample in samples[start : start + 256]])
        found.append(NextToken().total(Context(batch.targets, bundle.model(**batch.student))))
    return torch.cat(found).numpy()


def exposure(own_and_others: np.ndarray) -> float:
    """log2(codes) - log2(rank of the first by its loss): 0 for the unlikeliest, log2(codes) for the likeliest."""
    rank = 1 + int((own_and_others[1:] < own_and_others[0]).sum())
    return math.log2(len(own_and_others)) - math.log2(rank)


def area(members: np.ndarray, others: np.ndarray) -> float:
    """The chance that a member has a lower loss than another (the area under the ROC curve); 0.5 is guessing."""
    less = (members[:, None] < others[None]).mean()
    return float(less + 0.5 * (members[:, None] == others[None]).mean())


def work(epsilon: float | None, options: argparse.Namespace) -> dict[str, float | None]:
    """Trains one model and attacks it."""
    rows, fresh = (Rows(options.findings, options.canaries, options.seed + more) for more in (0, 1000))
    with tempfile.TemporaryDirectory() as folder:
        bundle = load(folder, options.seed)
        spent = train(bundle, rows, epsilon, options, folder)
    own = losses(bundle, [rows.canary(number) for number in range(2 * options.canaries)])
    ranked = [
        exposure(losses(bundle, [rows.canary(number, code) for code in range(CODES)]))
        for number in range(options.canaries)
    ]
    return {
        "spent": spent,
        "exposure": mean(ranked),
        "first": sum(bits == math.log2(CODES) for bits in ranked) / len(ranked),
        "area": area(own[: options.canaries], own[options.canaries :]),
        "loss": float(losses(bundle, fresh.findings[:128]).mean()),
    }


def table(runs: dict[float | None, list[dict[str, float | None]]]) -> str:
    """One line for each epsilon: means over seeds, with their range."""
    lines = [
        "| | epsilon spent | exposure, bits | codes found | membership, area | loss of new findings |",
        "|---|---|---|---|---|---|",
    ]
    for epsilon, seeds in runs.items():
        spent = "infinite" if epsilon is None else f"{max(run['spent'] or 0 for run in seeds):.2f}"
        cells = []
        for key, digits in (("exposure", 2), ("first", 2), ("area", 3), ("loss", 2)):
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
    parser.add_argument("--canaries", type=int, default=64, help="in the data; as many are held out")
    parser.add_argument("--epsilon", type=float, nargs="*", default=[8.0, 1.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write all figures as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    runs: dict[float | None, list[dict[str, float | None]]] = {}
    for seed in range(options.seeds):
        options.seed = seed
        for epsilon in (None, *options.epsilon):
            runs.setdefault(epsilon, []).append(found := work(epsilon, options))
            print(f"seed {seed}, epsilon {epsilon}: {found}", flush=True)
    print(f"\n{table(runs)}\n\n{machine(options.threads)}")
    if options.out:
        told = {"infinite" if epsilon is None else f"{epsilon:g}": seeds for epsilon, seeds in runs.items()}
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
