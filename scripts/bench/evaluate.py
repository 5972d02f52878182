"""Benchmark of evaluations: batches against one sample at a time, and options with the vision tower once or for each.

A reduced, random Gemma 3 answers questions of different lengths about images. The methods alternate in one process. A
ratio is printed only if the answers are the same. README.md has the figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import numpy as np
import torch
from interleaved import machine
from PIL import Image

from mllm.config.hardware import installed
from mllm.config.schema import ModelArgs
from mllm.engine.feature_computer import FeatureComputer
from mllm.engine.option_scores import score_sample
from mllm.models.generation.generate import generate
from mllm.predict.load import best_hardware, load_for_answers
from mllm.protocols import Bundle
from mllm.structures import Answer, Sample, Turn
from mllm.tiny.checkpoints import write_tiny

TEXT = dict(
    hidden_size=384,
    intermediate_size=1536,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    layer_types=["sliding_attention"] * 3 + ["full_attention"],
)
"""Reduced text model with the proportions of Gemma 3."""
PIXELS, TOKENS = 168, 16
"""Side of an image in pixels, and tokens per image: 144 patches are pooled to 16 tokens (MedGemma: 4,096 to 256)."""
VISION = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, image_size=PIXELS)
"""Reduced SigLIP."""
WORDS = ["chest", "image", "lesion", "normal", "left", "right", "upper", "lower", "lung", "heart", "small", "bright"]
QUESTION = (5, 60)
"""Range of the number of words of a question, drawn uniformly."""
CHOICES = ["normal", "edema", "left lung", "right lung", "a small lesion in the upper lobe"]
BATCH = 8
Method = Callable[[], list[Answer]]


def samples(count: int) -> list[Sample]:
    """Return questions about images of noise."""
    rng = np.random.default_rng(7)
    rows = []
    for _ in range(count):
        image = Image.fromarray(rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8))
        question = " ".join(rng.choice(WORDS, rng.integers(*QUESTION, endpoint=True)))
        rows.append(Sample([Turn("user", f"<image>{question}")], [image]))
    return rows


def answered(bundle: Bundle, rows: Sequence[Sample], batch_size: int, tokens: int) -> Method:
    """Return a function that answers all rows."""
    sampling = dict(do_sample=True, temperature=20.0)  # the most probable answer of random weights is always the same
    return lambda: generate(bundle, rows, batch_size=batch_size, max_new_tokens=tokens, progress=False, **sampling)


def scored(bundle: Bundle, rows: Sequence[Sample], is_shared: bool) -> Method:
    """Return a function that scores the options of all rows."""

    def score() -> list[Answer]:
        computer = FeatureComputer(bundle) if is_shared else None
        return [score_sample(bundle, row, CHOICES, 4, computer) for row in rows]

    return score


@dataclass
class Times:
    """Wall time and CPU time of a method in each round, in seconds."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def compare(first: Method, second: Method, rounds: int) -> tuple[list[Times], list[list[Answer]]]:
    """Return the times of both methods in alternating rounds, and their answers."""
    times, answers = [Times(), Times()], [[], []]
    for _ in range(rounds):
        for index, method in enumerate((first, second)):
            wall, cpu = time.perf_counter(), time.process_time()
            answers[index] = method()
            times[index].wall.append(time.perf_counter() - wall)
            times[index].cpu.append(time.process_time() - cpu)
        print("; ".join(f"{part.wall[-1]:.1f} s, CPU {part.cpu[-1]:.1f} s" for part in times), flush=True)
    return times, answers


def line(name: str, rows: int, slow: Times, fast: Times) -> str:
    """Return a row of the table of README.md."""
    cells = []
    for before, after in ((slow.wall, fast.wall), (slow.cpu, fast.cpu)):
        cells += [
            f"{rows / median(part):.1f} ({rows / max(part):.1f}-{rows / min(part):.1f})" for part in (before, after)
        ]
        cells.append(f"**{median(before) / median(after):.2f}**")
    return f"| {name} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=200, help="questions that are answered")
    parser.add_argument("--scored", type=int, default=40, help="questions whose options are scored")
    parser.add_argument("--tokens", type=int, default=12, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base = write_tiny("medgemma", Path(folder) / "base", text=TEXT, vision=VISION)
        args = ModelArgs("medgemma", str(base), lora_r=None, image_size=PIXELS, image_token_len=TOKENS)
        bundle = load_for_answers(args, best_hardware())
    rows = samples(options.samples)
    for method in (answered(bundle, rows[:BATCH], BATCH, 2), scored(bundle, rows[:2], True)):
        method()  # a warm-up
    one, batched = (answered(bundle, rows, size, options.tokens) for size in (1, BATCH))
    times, (alone, together) = compare(one, batched, options.rounds)
    if alone != together:
        different = sum(one != other for one, other in zip(alone, together, strict=True))
        sys.exit(f"no ratio: {different} of {len(rows)} answers differ")
    print(f"all {len(rows)} answers are the same, {len({answer.text for answer in alone})} different texts")
    header = ["", *(f"{word}: samples per {kind} second" for kind in ("", "CPU") for word in ("before", "after"))]
    header = [" ".join(cell.split()) for cell in [*header[:3], "ratio", *header[3:], "ratio"]]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    print(line(f"{len(rows)} answers: one at a time, batches of {BATCH}", len(rows), *times), flush=True)
    part = rows[: options.scored]
    times, (alone, together) = compare(scored(bundle, part, False), scored(bundle, part, True), options.rounds)
    pairs = zip(alone, together, strict=True)
    worst = max(abs(one.scores[name] - other.scores[name]) for one, other in pairs for name in CHOICES)
    if worst > 1e-5:
        sys.exit(f"no ratio: a probability differs by {worst:.1e}")
    print(line(f"{len(part)} questions with {len(CHOICES)} options: tower for each option, once", len(part), *times))
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "transformers"]).items())
    print(f"probabilities differ by at most {worst:.1e}; {machine(options.threads)}; {versions}")


if __name__ == "__main__":
    main()
