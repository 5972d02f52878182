"""Seconds an epoch and memory of image-and-text LoRA training, against TRL's SFTTrainer on the same work.

Both train the same adapter on the same frozen weights, samples and order, with the same optimizer; each run has a
process of its own, and runs alternate. No ratio is printed unless the losses of every sample agree. See README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np
import torch
from interleaved import Figures, in_fresh_process, machine, resident_memory, table, worst_difference
from PIL import Image
from transformers import TrainerCallback, TrainingArguments

from mllm.config.hardware import detect, installed
from mllm.config.schema import ModelArgs
from mllm.dataset.collator import EncodedDataset, LogicalCollator, cut_by_length
from mllm.dataset.sampler import LogicalBatchSampler
from mllm.engine.callbacks import Epochs, Guard, RunLog
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.engine.trainer import MultimodalTrainer
from mllm.models.builder.build_medgemma import build_medgemma
from mllm.objectives.text import NextToken
from mllm.structures import Bundle, Context, Sample, Turn
from mllm.testing.tiny import write_tiny

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
TRL_BATCHES = (1, 4, 16)
"""Samples of TRL's micro-batches, accumulated to the logical batch; its fastest is what ours is held against."""
TOKENS_PER_MICRO_BATCH = 2048
TOLERANCE = 1e-5
"""Largest relative difference of a sample's loss before training."""
DRIFT = 1e-3
"""Largest relative difference of an update's loss, which earlier updates' rounding has part in."""
NO_TRL = "this benchmark measures against TRL, which is not installed: pip install -e .[bench]"
WORDS = "chest image lesion normal left right upper lower lung heart small bright round there shown with".split()  # noqa: SIM905
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


def load(checkpoint: str, dtype: str) -> Bundle:
    """The model with LoRA on its language model and B filled, as a loss that is to tell adapters apart needs it."""
    from dataclasses import replace

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


def ours(bundle: Bundle, rows: Rows, dtype: str, folder: str, budget: int) -> tuple[MultimodalTrainer, Any]:
    """Our trainer, and a function that gives every sample's loss as the trainer cuts its batches."""
    objective = NextToken()
    sampler, meter, guard = LogicalBatchSampler(len(rows), LOGICAL_BATCH, shuffle=False), Meter(), Guard()
    data = EncodedDataset(rows, bundle.encoder.encode)
    trainer = MultimodalTrainer(
        Learner(bundle.model, {"next_token": objective}),
        TrainingArguments(
            **shared_arguments(folder, dtype),
            per_device_train_batch_size=LOGICAL_BATCH,
            label_names=[],
            logging_nan_inf_filter=False,
        ),
        train_dataset=data,
        train_sampler=sampler,
        collate=LogicalCollator(bundle.encoder.pad, tokens_per_piece=budget),
        meter=meter,
        callbacks=[guard, RunLog({"config": "bench"}, meter), Epochs(sampler)],
    )
    guard.trainer = trainer

    def losses() -> list[float]:
        found = [0.0] * len(rows)
        encoded = [data[index] for index in range(len(rows))]
        for cut in cut_by_length([len(one) for one in encoded], None, budget):
            batch = bundle.encoder.pad([encoded[index] for index in cut])
            outputs = trainer.learner.student(**batch.student)
            means = objective.total(Context(batch.targets, outputs)) / objective.count(batch.targets)
            for index, mean in zip(cut, means.tolist(), strict=True):
                found[index] = mean
        return found

    return trainer, losses


def trl(bundle: Bundle, rows: Rows, dtype: str, folder: str, size: int) -> tuple[Any, Any]:
    """TRL's trainer with its compaction forced on, and a function that gives every sample's loss."""
    try:
        import trl.trainer.utils as heads
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        sys.exit(NO_TRL)

    scored = []
    kernel = heads._ChunkedLogProbFunction

    class Counted:
        @staticmethod
        def apply(hidden: torch.Tensor, *rest: Any) -> Any:
            scored.append(hidden.shape[0])
            return kernel.apply(hidden, *rest)

    # TRL projects supervised positions alone where it has Triton, and every position elsewhere: on a CPU that would be
    # a straw man. This name is looked up by `add_fused_lm_head` for that choice only; the kernels have their own.
    heads._use_triton = lambda device: True
    heads._ChunkedLogProbFunction = Counted
    # Rows are handed over as they lie in memory: nothing is decoded here that is not decoded for ours.
    data = Dataset.from_dict({"index": list(range(len(rows)))}).with_transform(rows.columns)
    trainer = SFTTrainer(
        model=bundle.model.backbone,
        args=SFTConfig(
            **shared_arguments(folder, dtype),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=LOGICAL_BATCH // size,
            max_length=None,
            train_sampling_strategy="sequential",
        ),
        train_dataset=data,
        processing_class=bundle.encoder.processor,
    )

    def losses() -> list[float]:
        found = []
        for start in range(0, len(rows), size):
            inputs = trainer.data_collator([data[index] for index in range(start, min(start + size, len(rows)))])
            outputs = trainer.model(**inputs, use_cache=False, fused_lm_head=True)
            found += (-outputs.log_probs.sum(1) / outputs.label_mask.sum(1)).tolist()
            assert scored[-1] == outputs.label_mask.sum(), "TRL scored other positions than the supervised ones"
        return found

    return trainer, losses


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """One competitor in this process: its losses before training, or one epoch after an update that warms up."""
    torch.set_num_threads(arguments.threads)
    warm_up = 0 if arguments.losses else LOGICAL_BATCH
    rows = Rows(arguments.samples + warm_up)
    bundle = load(arguments.checkpoint, arguments.dtype[0])
    start = ours if arguments.competitor == "ours" else trl
    with tempfile.TemporaryDirectory() as folder:
        trainer, losses = start(bundle, rows, arguments.dtype[0], folder, arguments.size)
        if arguments.losses:
            with torch.no_grad(), trainer.compute_loss_context_manager():
                return {"losses": losses()}
        clock = Clock()
        trainer.add_callback(clock)
        with resident_memory() as peak:
            trainer.train()
        steps = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {**clock.read(), "bytes": peak.bytes, "steps": steps}


def compare(dtype: str, checkpoint: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both competitors' runs in one precision: losses first, then the choice of TRL's micro-batch, then the rounds."""

    def run(competitor: str, size: int, *more: str) -> dict[str, Any]:
        options = dict(competitor=competitor, size=size, dtype=dtype, samples=arguments.samples)
        options |= dict(threads=arguments.threads, checkpoint=checkpoint)
        command = [f"--{name}={value}" for name, value in options.items()]
        result = in_fresh_process(__file__, [*command, *more], arguments.threads)
        if "seconds" in result:
            print(f"{dtype} {competitor} {size}: {result['seconds']:.1f} s, {result['bytes'] / 1e9:.2f} GB", flush=True)
        return result

    budget = arguments.tokens_per_micro_batch
    losses = [run("ours", budget, "--losses")["losses"], run("trl", TRL_BATCHES[0], "--losses")["losses"]]
    worst = worst_difference(*losses)
    print(f"{dtype} losses of {len(losses[0])} samples differ by at most {worst:.1e} (relative)", flush=True)
    if worst > TOLERANCE:
        sys.exit(f"no ratio: the losses differ by more than {TOLERANCE:.0e}, so it would compare different work")
    tried = {size: run("trl", size) for size in TRL_BATCHES}
    fastest = min(tried, key=lambda size: tried[size]["seconds"])
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for _ in range(arguments.rounds):
        runs["ours"].append(run("ours", budget))
        runs["trl"].append(run("trl", fastest))
    drift = max(worst_difference(a["steps"], b["steps"]) for a, b in zip(runs["ours"], runs["trl"], strict=True))
    if drift > DRIFT:
        sys.exit(f"no ratio: the losses of the updates differ by {drift:.1e} (relative), so the trainings differ")
    return {"loss_difference": worst, "drift": drift, "fastest": fastest, "tried": tried, **runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help="of one epoch, a multiple of 16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--tokens-per-micro-batch", type=int, default=TOKENS_PER_MICRO_BATCH)
    parser.add_argument("--out", type=Path, help="where to write everything as JSON")
    for inner in ("--competitor", "--size", "--checkpoint", "--result"):
        parser.add_argument(inner, help=argparse.SUPPRESS, type=int if inner == "--size" else str)
    parser.add_argument("--losses", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.samples % LOGICAL_BATCH:
        parser.error(f"--samples must be a multiple of {LOGICAL_BATCH}")
    if arguments.competitor:
        Path(arguments.result).write_text(json.dumps(work(arguments)))
        return
    if not installed(["trl"]):
        sys.exit(NO_TRL)
    where = machine(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(write_tiny("medgemma", Path(folder) / "model", text=TEXT, vision=VISION))
        found = {dtype: compare(dtype, checkpoint, arguments) for dtype in arguments.dtype}
    versions = installed(["torch", "transformers", "trl", "peft"])
    rows = {
        f"{dtype}, TRL {runs['fastest']} x {LOGICAL_BATCH // runs['fastest']}": tuple(
            Figures.of(runs[who]) for who in ("ours", "trl")
        )
        for dtype, runs in found.items()
    }
    print(f"\n{table(rows, 'ours', 'TRL')}\n\n{where}; {', '.join(' '.join(pair) for pair in versions.items())}")
    if arguments.out:
        facts = {"machine": where, "versions": versions, "samples": arguments.samples, **found}
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
