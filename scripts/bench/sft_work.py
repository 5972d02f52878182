"""The work of the image-and-text benchmark, and the two that do it: our trainer and TRL's, each in its own process."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from interleaved import resident_memory
from PIL import Image
from transformers import Trainer, TrainerCallback, TrainingArguments

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator, cut_by_length
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.engine.callbacks import Epochs
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.engine.run_log import RunLog
from mllm.engine.trainer import MultimodalTrainer
from mllm.models.builder.build_medgemma import build_medgemma
from mllm.objectives.text import NextToken
from mllm.structures import IGNORE, Bundle, Context, Sample, Turn

TEXT = dict(
    vocab_size=262_208,
    hidden_size=320,
    intermediate_size=1280,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=80,
    query_pre_attn_scalar=80,
    sliding_window=1024,
    layer_types=["sliding_attention"] * 5 + ["full_attention"],
)
"""Gemma 3 with its own vocabulary and proportions, made narrow and shallow."""
VISION = dict(
    hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3, image_size=448, patch_size=14
)
"""SigLIP likewise: 1,024 patches an image, pooled to 256 tokens."""
PROMPT, ANSWER = (20, 300), (5, 150)
"""Tokens of text, drawn evenly."""
LOGICAL_BATCH = 16
"""Samples of one update."""
WORDS = ["chest", "image", "lesion", "normal", "left", "right", "upper", "lower", "lung", "heart", "small", "bright"]
"""Words that are one token each in the tiny vocabulary."""


class Rows:
    """Generated conversations about generated pictures, the same for every competitor."""

    def __init__(self, size: int, pixels: int = VISION["image_size"]) -> None:
        rng = np.random.default_rng(7)
        self.rows = []
        for _ in range(size):
            question, answer = (
                " ".join(rng.choice(WORDS, rng.integers(*span, endpoint=True))) for span in (PROMPT, ANSWER)
            )
            picture = Image.fromarray(rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8))
            self.rows.append((picture, question, answer))

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """A row as our datasets give it."""
        picture, question, answer = self.rows[index]
        return Sample([Turn("user", f"<image>{question}"), Turn("assistant", answer)], [picture], source=f"row {index}")

    def columns(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        """Rows as TRL takes them; new ones each time, since its collator changes what it is given."""
        pictures, questions, answers = zip(*[self.rows[index] for index in batch["index"]], strict=True)
        return {
            "images": [[picture] for picture in pictures],
            "prompt": [[{"role": "user", "content": question}] for question in questions],
            "completion": [[{"role": "assistant", "content": answer}] for answer in answers],
        }


class Clock(TrainerCallback):
    """The seconds from the end of the first update, which warms up, to the end of the last."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the time."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def read(self) -> dict[str, float]:
        """Wall time, and that of all threads together, which other processes of the machine disturb less."""
        wall, cpu = (last - first for first, last in zip(self.ends[0], self.ends[-1], strict=True))
        return {"seconds": wall, "cpu_seconds": cpu}


@dataclass(frozen=True)
class Competitor:
    """One of the two, ready to train."""

    trainer: Trainer
    losses: Callable[[], list[float]]
    """Every sample's mean loss, in the micro-batches that it trains on."""
    scored: Callable[[], int]
    """The positions that its training projected to the vocabulary."""


def load(checkpoint: str, dtype: str) -> Bundle:
    """The model with LoRA on its language model and B filled, as a loss that is to tell adapters apart needs it."""
    torch.manual_seed(0)
    # TRL's completion holds the line break that Gemma's template writes after a turn; supervise it here as well.
    args = ModelArgs(type="medgemma", model_name_or_path=checkpoint, lora_r=16, turn_end="<end_of_turn>\n")
    bundle = build_medgemma(args, replace(detect(), precision=dtype))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in bundle.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=generator)
    return bundle


def shared_arguments(folder: str, dtype: str) -> dict[str, Any]:
    """Training arguments that both competitors get."""
    return dict(
        output_dir=folder,
        num_train_epochs=1,
        learning_rate=1e-4,
        bf16=dtype == "bf16",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        seed=0,
    )


def build_ours(rows: Rows, bundle: Bundle, arguments: dict[str, Any], tokens: int) -> Competitor:
    """Our trainer with the callbacks of every run, logical batches cut into `tokens` a piece."""
    objective = NextToken()
    sampler, meter = LogicalBatchSampler(len(rows), LOGICAL_BATCH, shuffle=False), Meter()
    data = EncodedDataset(rows, bundle.encoder.encode)
    trainer = MultimodalTrainer(
        Learner(bundle.model, {"next_token": objective}),
        TrainingArguments(
            **arguments, per_device_train_batch_size=LOGICAL_BATCH, label_names=[], logging_nan_inf_filter=False
        ),
        train_dataset=data,
        train_sampler=sampler,
        collate=LogicalCollator(bundle.encoder.pad, tokens_per_piece=tokens),
        meter=meter,
        callbacks=[RunLog({"config": "bench"}, meter), Epochs(sampler)],
    )

    def losses() -> list[float]:
        found = [0.0] * len(rows)
        encoded = [data[index] for index in range(len(rows))]
        for cut in cut_by_length([one.lengths for one in encoded], None, tokens):
            batch = bundle.encoder.pad([encoded[index] for index in cut])
            outputs = trainer.learner.student(**batch.student)
            means = objective.total(Context(batch.targets, outputs)) / objective.count(batch.targets)
            for index, mean in zip(cut, means.tolist(), strict=True):
                found[index] = mean
        return found

    def scored() -> int:
        return sum(int((data[index].targets["labels"][1:] != IGNORE).sum()) for index in range(len(rows)))

    return Competitor(trainer, losses, scored)


def build_trl(rows: Rows, bundle: Bundle, arguments: dict[str, Any], samples: int) -> Competitor:
    """TRL's trainer with its compaction forced on, in micro-batches of `samples`."""
    import trl.trainer.utils as heads
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    scored = []
    kernel = heads._ChunkedLogProbFunction

    class Counted:
        @staticmethod
        def apply(hidden_TD: torch.Tensor, *rest: Any) -> Any:
            scored.append(len(hidden_TD))
            return kernel.apply(hidden_TD, *rest)

    # TRL projects supervised positions alone where it has Triton, and every position elsewhere: on a CPU that would be
    # a straw man. In this module `add_fused_lm_head` alone looks the name up; the kernels have their own.
    heads._use_triton = lambda device: True
    heads._ChunkedLogProbFunction = Counted
    # Rows are handed over as they lie in memory: nothing is decoded here that is not decoded for ours.
    data = Dataset.from_dict({"index": list(range(len(rows)))}).with_transform(rows.columns)
    trainer = SFTTrainer(
        model=bundle.model.backbone,
        args=SFTConfig(
            **arguments,
            per_device_train_batch_size=samples,
            gradient_accumulation_steps=LOGICAL_BATCH // samples,
            max_length=None,
            train_sampling_strategy="sequential",
        ),
        train_dataset=data,
        processing_class=bundle.encoder.processor,
    )

    def losses() -> list[float]:
        found = []
        for start in range(0, len(rows), samples):
            inputs = trainer.data_collator([data[i] for i in range(start, min(start + samples, len(rows)))])
            outputs = trainer.model(**inputs, use_cache=False, fused_lm_head=True)
            found += (-outputs.log_probs.sum(1) / outputs.label_mask.sum(1)).tolist()
        return found

    return Competitor(trainer, losses, lambda: sum(scored))


def work(options: argparse.Namespace) -> dict[str, Any]:
    """All losses before training, or one epoch after an update that warms up."""
    torch.set_num_threads(options.threads)
    rows = Rows(options.samples + (0 if options.losses else LOGICAL_BATCH))
    build = {"ours": build_ours, "trl": build_trl}[options.competitor]
    with tempfile.TemporaryDirectory() as folder:
        arguments = shared_arguments(folder, options.dtype)
        competitor = build(rows, load(options.checkpoint, options.dtype), arguments, options.size)
        trainer = competitor.trainer
        if options.losses:
            with torch.no_grad(), trainer.compute_loss_context_manager():
                return {"losses": competitor.losses()}
        clock = Clock()
        trainer.add_callback(clock)
        with resident_memory() as peak:
            trainer.train()
    steps = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {**clock.read(), "bytes": peak.bytes, "steps": steps, "scored": competitor.scored()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--competitor", choices=("ours", "trl"), required=True)
    parser.add_argument("--size", type=int, required=True, help="ours: tokens of a micro-batch; trl: samples")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    options.result.write_text(json.dumps(work(options)))


if __name__ == "__main__":
    main()
