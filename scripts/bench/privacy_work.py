"""One run of the benchmark of private training: plain training, private training, or Opacus."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from interleaved import resident_memory
from sft_work import ANSWER, PROMPT, WORDS, Clock, shared_arguments
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator, cut_by_length
from mllm.dataset.loading.poisson import PoissonSampler
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.dataset.loading.sharing import RowCollator
from mllm.engine.callbacks import Epochs
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.engine.privacy.mechanism import Mechanism
from mllm.engine.private_trainer import PrivateTrainer
from mllm.engine.run_log import RunLog
from mllm.engine.trainer import MultimodalTrainer
from mllm.models.builder.build_text import build_causal_lm
from mllm.models.encoding.packing import packing
from mllm.models.language_model import LanguageModel
from mllm.objectives.text import NextToken
from mllm.protocols import Bundle
from mllm.structures import IGNORE, Batch, Sample, Turn

TEXT = dict(
    vocab_size=256_000,
    hidden_size=320,
    intermediate_size=1920,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=80,
    query_pre_attn_scalar=80,
    sliding_window=512,
    layer_types=["sliding_attention", "full_attention"] * 3,
)
"""Reduced VaultGemma with its full vocabulary and the proportions of VaultGemma 1B."""
TEMPLATE = "{% for turn in messages %}{{ turn['role'] ~ ': ' ~ turn['content'] ~ eos_token }}{% endfor %}"
LOGICAL_BATCH = 16
"""Samples per update and number of rows. With a sampling rate of 1, each draw contains all rows."""
SPANS = {"short": ((10, 40), (10, 60)), "long": (PROMPT, ANSWER)}
"""Ranges of the number of words of questions and answers, drawn uniformly. Each word is one token."""
MAX_LENGTH = {"short": 128, "long": 512}
"""Maximum number of tokens of a sample."""
CLIP, NOISE = 1.0, 0.5
"""Clipping norm and noise multiplier."""


class Rows:
    """Generated questions and answers, the same for all competitors."""

    def __init__(self, texts: str) -> None:
        rng = np.random.default_rng(7)
        self.rows = [
            tuple(" ".join(rng.choice(WORDS, rng.integers(*span, endpoint=True))) for span in SPANS[texts])
            for _ in range(LOGICAL_BATCH)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return a row as a sample."""
        question, answer = self.rows[index]
        return Sample([Turn("user", question), Turn("assistant", answer)], source=f"row {index}")


def load(checkpoint: str, max_length: int) -> Bundle:
    """Load the model in fp32 with a LoRA of rank 8 on all projections; B is random."""
    torch.manual_seed(0)
    args = ModelArgs("causal-lm", checkpoint, lora_r=8, lora_alpha=16, max_length=max_length, chat_template=TEMPLATE)
    bundle = build_causal_lm(args, detect())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in bundle.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=generator)
    return bundle


class FirstGradient(TrainerCallback):
    """Norms of all gradients of the first update."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Record the norms at the first update."""
        if not self.norms:
            self.norms = norms(model)


def norms(model: nn.Module) -> list[float]:
    """Return the norm of each gradient."""
    return [float(parameter.grad.norm()) for parameter in model.parameters() if parameter.grad is not None]


def collator(bundle: Bundle, options: argparse.Namespace) -> LogicalCollator | RowCollator:
    """Return the collator of our trainer: micro-batches of samples, or of packed rows of a number of tokens."""
    if not options.packed:
        return LogicalCollator(bundle.encoder.pad, samples_per_piece=options.physical)
    assert isinstance(bundle.model, LanguageModel)
    bundle.model.share_tokens(image_blocks=False)
    return RowCollator(packing(bundle.encoder.pad), samples_per_piece=LOGICAL_BATCH, tokens_per_piece=options.packed)


def train_ours(rows: Rows, bundle: Bundle, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train with our trainer and the callbacks of a run: plain, or private with all rows in each draw."""
    is_private = options.competitor == "private"
    sampler: Any = LogicalBatchSampler(len(rows), LOGICAL_BATCH, shuffle=False)
    trainer_class: Any = MultimodalTrainer
    private_options: dict[str, Any] = {}
    if is_private:
        sampler = PoissonSampler([[index] for index in range(len(rows))], 1.0, secret=bytes(32))
        mechanism = Mechanism(len(rows), 1.0, CLIP, delta=1e-3, noise_multiplier=options.noise)
        trainer_class, private_options = PrivateTrainer, dict(mechanism=mechanism, synthetic=[])
    arguments = shared_arguments(folder, "fp32") | dict(num_train_epochs=options.updates + 1, logging_steps=1000)
    meter, clock, first = Meter(), Clock(), FirstGradient()
    trainer = trainer_class(
        Learner(bundle.model, {"next_token": NextToken()}, reduction="samples" if is_private else "items"),
        TrainingArguments(
            **arguments, optim="sgd", max_grad_norm=0.0, per_device_train_batch_size=LOGICAL_BATCH, label_names=[]
        ),
        train_dataset=EncodedDataset(rows, bundle.encoder.encode),
        train_sampler=sampler,
        collate=collator(bundle, options),
        meter=meter,
        callbacks=[RunLog({"config": "bench"}, meter), Epochs(sampler), clock, first],
        **private_options,
    )
    with resident_memory() as peak:
        trainer.train()
    return {**clock.read(), "bytes": peak.bytes, "gradient": first.norms}


def train_opacus(rows: Rows, bundle: Bundle, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train with Opacus as in its tutorials: hooks for per-sample gradients, its optimizer, the logits of the model."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    encoded = [bundle.encoder.encode(rows.sample(index)) for index in range(len(rows))]
    # Each batch is padded to its longest sample, as by our trainer.
    cuts = cut_by_length([sample.lengths for sample in encoded], options.physical, None)
    batches = [bundle.encoder.pad([encoded[index] for index in cut]) for cut in cuts]
    model = GradSampleModule(bundle.model.pretrained.train(), strict=False)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = DPOptimizer(
        torch.optim.SGD(trainable, lr=1e-4),
        noise_multiplier=options.noise,
        max_grad_norm=CLIP,
        expected_batch_size=LOGICAL_BATCH,
    )
    gradient: list[float] = []
    with resident_memory() as peak:
        for update in range(options.updates + 1):
            if update == 1:  # the first update is a warm-up
                started = (time.perf_counter(), time.process_time())
            for batch in batches:
                sample_losses(model, batch).mean().backward()
                optimizer.signal_skip_step(do_skip=batch is not batches[-1])
                optimizer.step()
                gradient = gradient or (norms(model) if batch is batches[-1] else [])
                optimizer.zero_grad()
        ended = (time.perf_counter(), time.process_time())
    return {
        "seconds": ended[0] - started[0],
        "cpu_seconds": ended[1] - started[1],
        "bytes": peak.bytes,
        "gradient": gradient,
    }


def sample_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of each sample [B], computed from all logits."""
    logits = model(**batch.student, use_cache=False).logits[:, :-1]
    labels = batch.targets["labels"][:, 1:]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
    return losses.sum(dim=1) / (labels != IGNORE).sum(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--competitor", choices=("plain", "private", "opacus"), required=True)
    parser.add_argument("--physical", type=int, required=True)
    parser.add_argument("--packed", type=int, required=True, help="tokens of a packed row; 0: no packing")
    parser.add_argument("--texts", choices=tuple(SPANS), required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--noise", type=float, default=NOISE)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train = train_opacus if options.competitor == "opacus" else train_ours
    with tempfile.TemporaryDirectory() as folder:
        result = train(Rows(options.texts), load(options.checkpoint, MAX_LENGTH[options.texts]), folder, options)
    options.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
