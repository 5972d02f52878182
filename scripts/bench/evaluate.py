"""Benchmark of evaluations: batches and shared images against one sample at a time, and the same for scored options.

A reduced, random Gemma 3 answers questions of different lengths about images. With `--questions N`, each image has N
questions, and their batches share its tokens. The methods alternate in one process. A ratio is printed only if the
answers are the same. README.md has the figures.
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
from mllm.engine.answering import SCORED_WINDOW
from mllm.engine.feature_computer import FeatureComputer
from mllm.engine.option_scores import score_sample
from mllm.engine.shared_scores import score_sharing
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.generation.generate import generate
from mllm.models.language_model import LanguageModel
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
Method = Callable[[], list[Answer]]


def samples(count: int, questions: int) -> list[Sample]:
    """Return questions about images of noise, several about each image."""
    rng = np.random.default_rng(7)
    rows = []
    for number in range(count):
        if number % questions == 0:
            image = Image.fromarray(rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8))
        question = " ".join(rng.choice(WORDS, rng.integers(*QUESTION, endpoint=True)))
        rows.append(Sample([Turn("user", f"<image>{question}")], [image]))
    return rows


def answered(bundle: Bundle, rows: Sequence[Sample], batch_size: int, tokens: int) -> Method:
    """Return a function that answers all rows; batches share the tokens of an image."""
    sampling = dict(do_sample=True, temperature=20.0)  # the most probable answer of random weights is always the same
    options = dict(batch_size=batch_size, max_new_tokens=tokens, share_images=batch_size > 1, **sampling)
    return lambda: generate(bundle, rows, progress=False, **options)


def scored(bundle: Bundle, rows: Sequence[Sample], computes_once: bool) -> Method:
    """Return a function that scores the options of each row alone, with the vision tower once or for each option."""

    def score() -> list[Answer]:
        computer = FeatureComputer(bundle) if computes_once else None
        return [score_sample(bundle, row, CHOICES, 4, computer) for row in rows]

    return score


def scored_sharing(bundle: Bundle, rows: Sequence[Sample]) -> Method:
    """Return a function that scores the options of all rows, which share the tokens of their question and image."""

    def score() -> list[Answer]:
        answers: dict[int, Answer] = {}
        for start in range(0, len(rows), SCORED_WINDOW):
            window = dict(enumerate(rows[start : start + SCORED_WINDOW], start))
            for row in score_sharing(bundle, window, CHOICES, 4):
                answers |= row
        return [answers[index] for index in range(len(rows))]

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


def load(folder: Path) -> Bundle:
    """Return the model, whose samples can share tokens."""
    base = write_tiny("medgemma", folder / "base", text=TEXT, vision=VISION)
    args = ModelArgs("medgemma", str(base), lora_r=None, image_size=PIXELS, image_token_len=TOKENS)
    bundle = load_for_answers(args, best_hardware())
    assert isinstance(bundle.model, LanguageModel) and isinstance(bundle.encoder, ChatEncoder)
    bundle.model.share_tokens(image_blocks=True)
    bundle.encoder.shares_images = True
    return bundle


def compare_answers(bundle: Bundle, rows: Sequence[Sample], name: str, options: argparse.Namespace) -> str:
    """Return the row of answers one at a time and in batches; exit if they differ."""
    one, batched = (answered(bundle, rows, size, options.tokens) for size in (1, options.batch))
    times, (alone, together) = compare(one, batched, options.rounds)
    if alone != together:
        different = sum(one != other for one, other in zip(alone, together, strict=True))
        sys.exit(f"no ratio: {different} of {len(rows)} answers differ")
    print(f"all {len(rows)} answers are the same, {len({answer.text for answer in alone})} different texts")
    return line(name, len(rows), *times)


def compare_scores(first: Method, second: Method, name: str, options: argparse.Namespace) -> str:
    """Return the row of two methods that score options; exit if probabilities differ."""
    times, (alone, together) = compare(first, second, options.rounds)
    pairs = zip(alone, together, strict=True)
    worst = max(abs(one.scores[name] - other.scores[name]) for one, other in pairs for name in CHOICES)
    if worst > 1e-5:
        sys.exit(f"no ratio: a probability differs by {worst:.1e}")
    print(f"probabilities differ by at most {worst:.1e}")
    return line(name, len(alone), *times)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=200, help="questions that are answered")
    parser.add_argument("--questions", type=int, default=1, help="questions about each image")
    parser.add_argument("--batch", type=int, default=8, help="questions that are answered together")
    parser.add_argument("--scored", type=int, default=40, help="questions whose options are scored")
    parser.add_argument("--tokens", type=int, default=12, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bundle = load(Path(folder))
    rows = samples(options.samples, options.questions)
    part = rows[: options.scored]
    each, once, sharing = scored(bundle, part, False), scored(bundle, part, True), scored_sharing(bundle, part)
    answered(bundle, rows[: options.batch], options.batch, 2)()  # a warm-up
    scored(bundle, rows[:2], True)()
    shared = f", images shared by {options.questions} questions" if options.questions > 1 else ""
    name = f"{len(rows)} answers: one at a time, batches of {options.batch}{shared}"
    lines = [compare_answers(bundle, rows, name, options)]
    asked = f"{len(part)} questions with {len(CHOICES)} options"
    lines.append(compare_scores(each, once, f"{asked}: tower for each option, once", options))
    lines.append(compare_scores(once, sharing, f"{asked}: tower once, tokens shared by options{shared}", options))
    header = ["", *(f"{word}: samples per {kind} second" for kind in ("", "CPU") for word in ("before", "after"))]
    header = [" ".join(cell.split()) for cell in [*header[:3], "ratio", *header[3:], "ratio"]]
    print("\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines]))
    versions = ", ".join(" ".join(pair) for pair in installed(["torch", "transformers"]).items())
    print(f"{machine(options.threads)}; {versions}")


if __name__ == "__main__":
    main()
