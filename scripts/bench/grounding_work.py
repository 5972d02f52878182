"""One run of the benchmark of boxes: training of a tiny model and evaluation on held-out scenes."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator, Samples
from mllm.dataset.loading.sampler import Draw, LogicalBatchSampler
from mllm.dataset.mixing import ConcatDataset
from mllm.dataset.single_image_dataset.scenes import PhantomBoxDataset, SceneDataset
from mllm.engine.callbacks import Epochs
from mllm.engine.evaluation import evaluate_split
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.engine.run_log import RunLog
from mllm.engine.trainer import MultimodalTrainer
from mllm.metrics.grounding import Rec, Res
from mllm.models.builder.builder import load_pretrained
from mllm.objectives.base import Objective
from mllm.objectives.boxes import BoxLoss
from mllm.objectives.masks import MaskLoss
from mllm.objectives.text import NextToken
from mllm.protocols import Bundle
from mllm.structures import Encoded, Failure
from mllm.tiny.checkpoints import ensure_tiny

PIXELS, IMAGE_TOKENS = 112, 64
BATCH = 16
"""Samples per update."""
METHODS: dict[str, dict[str, Any]] = {
    "text": {},
    "heads": dict(box=dict(type="BoxHead", hidden=256, outline=True), mask=dict(type="MaskHead", dim=64, context=8)),
    "state": dict(box=dict(type="BoxHead", hidden=256), mask=dict(type="MaskHead", dim=64)),
}
"""`model_args.heads` of each method.

text: no heads; heads: a mask head with the hidden states of the preceding words, and a box head with the outline of the
mask; state: both heads as published, with one hidden state.
"""
HELD_OUT = 1000
"""Seed of the held-out images."""
TRAINING = 10
"""Seed of the training images, to which the seed of the run is added."""


class EncodedOnce(Dataset[Encoded]):
    """Samples that are encoded once: all epochs have the images and questions of the first epoch."""

    def __init__(self, samples: EncodedDataset) -> None:
        self.samples = samples
        self.encoded: dict[int, Encoded | Failure] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> Encoded | Failure:  # type: ignore[override]
        if draw.index not in self.encoded:
            self.encoded[draw.index] = self.samples[Draw(draw.index, epoch=0)]
        return self.encoded[draw.index]


def scenes(size: int, seed: int, objects: int = 3) -> SceneDataset:
    """Return scenes of one to `objects` colored shapes with a question about one of them."""
    return SceneDataset(size=size, seed=seed, image_size=PIXELS, objects=objects, named=True)


def phantoms(size: int, seed: int) -> PhantomBoxDataset:
    """Return phantoms with one lesion."""
    return PhantomBoxDataset(size=size, seed=seed, image_size=PIXELS, lesions=(1, 1))


def load(method: str, folder: str) -> Bundle:
    """Load the tiny Gemma 3 with a LoRA, and with the heads of the method."""
    args = ModelArgs(
        type="medgemma",
        model_name_or_path=str(ensure_tiny("medgemma", folder)),
        lora_r=32,
        lora_target="all",
        image_size=PIXELS,
        image_token_len=IMAGE_TOKENS,
        max_length=256,
        heads=METHODS[method],
    )
    return load_pretrained(args, detect())


def train(bundle: Bundle, data: Samples, options: argparse.Namespace, folder: str) -> list[float]:
    """Train with our trainer and return the logged losses."""
    objectives: dict[str, Objective] = {"next_token": NextToken()}
    if bundle.model.heads:
        objectives |= {"mask": MaskLoss(weight=4.0), "box": BoxLoss()}
    sampler, meter = LogicalBatchSampler(len(data), BATCH, seed=options.seed), Meter()
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=options.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=options.rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.steps // 10,
        use_cpu=True,
        logging_steps=min(50, options.steps),
        logging_nan_inf_filter=False,
        label_names=[],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        seed=options.seed,
    )
    trainer = MultimodalTrainer(
        Learner(bundle.model, objectives),
        arguments,
        train_dataset=EncodedOnce(EncodedDataset(data, bundle.encoder.encode)),
        train_sampler=sampler,
        collate=LogicalCollator(bundle.encoder.pad, samples_per_piece=BATCH),
        meter=meter,
        callbacks=[RunLog({"config": "bench"}, meter), Epochs(sampler)],
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def evaluate(bundle: Bundle, data: Samples) -> dict[str, Any]:
    """Return the figures of generated answers. `seconds` is CPU time per image."""
    metrics = {"rec": Rec, "res": Res} if bundle.model.mask_head is not None else {"rec": Rec}
    started = time.process_time()
    evaluation = evaluate_split(bundle, data, metrics, max_new_tokens=48, batch_size=BATCH)
    seconds = time.process_time() - started
    return {
        "accuracy": evaluation.figures["rec"]["accuracy"],
        "box_iou": evaluation.figures["rec"]["mean_iou"],
        "failed": evaluation.figures["rec"]["failed"],
        "mask_iou": evaluation.figures.get("res", {}).get("gIoU"),
        "tokens": mean(row["tokens"] for row in evaluation.rows),
        "seconds": seconds / len(evaluation.rows),
    }


def box_tokens(bundle: Bundle, data: Samples) -> float:
    """Return the mean number of tokens of the box in a reference answer."""
    encoder = bundle.encoder
    counts = []
    for index in range(len(data)):
        sample = data.sample(index)
        frame, box = encoder.marks.frames(sample)[0], sample.marks[0].box
        assert box is not None
        text = encoder.marks.box_format.write_boxes([frame.relative(*box)])
        counts.append(len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]))
    return mean(counts)


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Train one method with one seed, and evaluate it."""
    torch.set_num_threads(options.threads)
    set_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        bundle = load(options.method, folder)
        seed = TRAINING + options.seed
        data = ConcatDataset([scenes(options.samples, seed), phantoms(options.samples // 4, seed)])
        losses = train(bundle, data, options, folder)
    held_out = scenes(options.held_out, HELD_OUT)
    return {
        "alone": evaluate(bundle, scenes(options.held_out, HELD_OUT, objects=1)),
        "scenes": evaluate(bundle, held_out),
        "phantoms": evaluate(bundle, phantoms(options.held_out // 2, HELD_OUT)),
        "box_tokens": box_tokens(bundle, held_out),
        "losses": losses,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--rate", type=float, required=True)
    for name in ("seed", "steps", "samples", "held-out", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(argv)
    options.result.write_text(json.dumps(work(options)))


if __name__ == "__main__":
    main()
