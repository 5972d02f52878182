"""One run of the benchmark of training with images and text, by our trainer or that of TRL."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from interleaved import resident_memory
from PIL import Image
from step_profile import StepProfile
from transformers import Trainer, TrainerCallback, TrainingArguments

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator, cut_by_length
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.dataset.loading.sharing import RowCollator
from mllm.engine.cache_room import CacheRoom
from mllm.engine.callbacks import Epochs
from mllm.engine.feature_cache import FeatureCache
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.engine.run_log import RunLog
from mllm.engine.trainer import MultimodalTrainer
from mllm.models.builder.build_medgemma import build_medgemma
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.encoding.packing import packing
from mllm.models.generation.generate import evaluating
from mllm.models.language_model import LanguageModel
from mllm.objectives.text import NextToken
from mllm.predict.feature_filler import Filler, ImageSample
from mllm.protocols import Bundle
from mllm.structures import IGNORE, Context, Sample, Turn

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
"""Reduced text model of Gemma 3 with its full vocabulary and its proportions."""
VISION = dict(
    hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3, image_size=448, patch_size=14
)
"""Reduced SigLIP: 1,024 patches per image, pooled to 256 tokens."""
PROMPT, ANSWER = (20, 300), (5, 150)
"""Ranges of the number of tokens of a prompt and an answer, drawn uniformly."""
SHORT_PROMPT, SHORT_ANSWER = (8, 40), (2, 30)
"""Ranges with several questions about each image."""
LOGICAL_BATCH = 16
"""Samples per update."""
WORDS = ["chest", "image", "lesion", "normal", "left", "right", "upper", "lower", "lung", "heart", "small", "bright"]
"""Words that consist of one token in the tiny vocabulary."""


class Rows:
    """Generated conversations about generated images, equal for both competitors; `questions=0`: without images."""

    def __init__(self, size: int, pixels: int = VISION["image_size"], questions: int = 1) -> None:
        rng = np.random.default_rng(7)
        spans = (PROMPT, ANSWER) if questions <= 1 else (SHORT_PROMPT, SHORT_ANSWER)
        self.rows: list[tuple[Image.Image | None, str, str]] = []
        for number in range(size):
            question, answer = (" ".join(rng.choice(WORDS, rng.integers(*span, endpoint=True))) for span in spans)
            picture = None
            if questions:
                picture = self.rows[-1][0] if number % questions else random_picture(rng, pixels)
            self.rows.append((picture, question, answer))

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return a row as a sample."""
        picture, question, answer = self.rows[index]
        images = [] if picture is None else [picture]
        question = f"{'<image>' * len(images)}{question}"
        return Sample([Turn("user", question), Turn("assistant", answer)], images, source=f"row {index}")

    def columns(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        """Return rows in the format of TRL, as new objects, because the collator of TRL modifies its input."""
        pictures, questions, answers = zip(*[self.rows[index] for index in batch["index"]], strict=True)
        images = {} if None in pictures else {"images": [[picture] for picture in pictures]}
        return images | {
            "prompt": [[{"role": "user", "content": question}] for question in questions],
            "completion": [[{"role": "assistant", "content": answer}] for answer in answers],
        }


def random_picture(rng: np.random.Generator, pixels: int) -> Image.Image:
    """Return a square picture of noise."""
    return Image.fromarray(rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8))


class Clock(TrainerCallback):
    """Clock of all updates except the first, which is a warm-up."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the time."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def read(self) -> dict[str, float]:
        """Return wall time and CPU time in seconds. CPU time depends less on other processes."""
        wall, cpu = (last - first for first, last in zip(self.ends[0], self.ends[-1], strict=True))
        return {"seconds": wall, "cpu_seconds": cpu}


@dataclass(frozen=True)
class Competitor:
    """One of the two trainers, with its functions for measurements."""

    trainer: Trainer
    losses: Callable[[], list[float]]
    """Return the mean loss of each sample, computed in the micro-batches of training."""
    scored: Callable[[], int]
    """Return the number of positions whose logits were computed in training."""


def load(checkpoint: str, dtype: str) -> Bundle:
    """Load the model with LoRA on its language model. B is random, so that the loss depends on the adapter."""
    torch.manual_seed(0)
    # The completion of TRL includes the line break after a turn in Gemma's template; it is supervised here too.
    args = ModelArgs(type="medgemma", model_name_or_path=checkpoint, lora_r=16, turn_end="<end_of_turn>\n")
    bundle = build_medgemma(args, replace(detect(), precision=dtype))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in bundle.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=generator)
    return bundle


def shared_arguments(folder: str, dtype: str) -> dict[str, Any]:
    """Return the training arguments of both competitors."""
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


def collator(bundle: Bundle, questions: int, tokens: int) -> LogicalCollator | RowCollator:
    """Return the collator of our trainer: texts are packed, and several questions share the tokens of an image."""
    if questions == 1:
        return LogicalCollator(bundle.encoder.pad, tokens_per_piece=tokens)
    assert isinstance(bundle.encoder, ChatEncoder) and isinstance(bundle.model, LanguageModel)
    bundle.encoder.shares_images = questions > 1
    bundle.model.share_tokens(image_blocks=True)
    pad = bundle.encoder.pad_shared if questions else packing(bundle.encoder.pad)
    return RowCollator(pad, samples_per_piece=LOGICAL_BATCH, tokens_per_piece=tokens)


def build_ours(rows: Rows, bundle: Bundle, arguments: dict[str, Any], tokens: int, questions: int = 1) -> Competitor:
    """Build our trainer with the callbacks of a run. Micro-batches have at most `tokens` padded tokens."""
    objective = NextToken()
    collate = collator(bundle, questions, tokens)
    sampler, meter = LogicalBatchSampler(len(rows), LOGICAL_BATCH, shuffle=False), Meter()
    data = EncodedDataset(rows, bundle.encoder.encode)
    trainer = MultimodalTrainer(
        Learner(bundle.model, {"next_token": objective}),
        TrainingArguments(
            **arguments, per_device_train_batch_size=LOGICAL_BATCH, label_names=[], logging_nan_inf_filter=False
        ),
        train_dataset=data,
        train_sampler=sampler,
        collate=collate,
        meter=meter,
        callbacks=[RunLog({"config": "bench"}, meter), Epochs(sampler)],
    )

    def losses() -> list[float]:
        result = [0.0] * len(rows)
        encoded = [data[index] for index in range(len(rows))]
        if isinstance(collate, RowCollator):
            cuts = collate.rows(encoded)
            batches = [collate.piece([encoded[index] for index in cut]) for cut in cuts]
        else:
            cuts = cut_by_length([sample.lengths for sample in encoded], None, tokens)
            batches = [bundle.encoder.pad([encoded[index] for index in cut]) for cut in cuts]
        for cut, batch in zip(cuts, batches, strict=True):
            outputs = trainer.learner.student(**batch.student)
            means = objective.total(Context(batch.targets, outputs)) / objective.count(batch.targets)
            for index, mean in zip(cut, means.tolist(), strict=True):
                result[index] = mean
        return result

    def scored() -> int:
        return sum(int((data[index].targets["labels"][1:] != IGNORE).sum()) for index in range(len(rows)))

    return Competitor(trainer, losses, scored)


def build_stored(rows: Rows, bundle: Bundle, arguments: dict[str, Any], tokens: int, questions: int = 1) -> Competitor:
    """Build our trainer with the features of all images stored, as they are from the second epoch on."""
    assert isinstance(bundle.encoder, ChatEncoder)
    cache = FeatureCache(Path(arguments["output_dir"]) / "features", "0" * 40)
    filler = Filler(bundle, cache, CacheRoom(cache.folder, 10**10))
    precision = torch.autocast("cpu", torch.bfloat16, enabled=arguments["bf16"])
    with evaluating(bundle.model), torch.no_grad(), precision:
        for index in range(len(rows)):
            sample = rows.sample(index)
            filler.add(ImageSample(cache.path(sample.images), bundle.encoder.prompt(sample)))
    assert filler.counts.computed + filler.counts.found == len(rows)
    bundle.encoder.stored_features = cache
    return build_ours(rows, bundle, arguments, tokens, questions)


def build_trl(rows: Rows, bundle: Bundle, arguments: dict[str, Any], samples: int) -> Competitor:
    """Build the trainer of TRL with logits at supervised positions only, in micro-batches of `samples`."""
    import trl.trainer.utils as trl_utils
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    scored = []
    original = trl_utils._ChunkedLogProbFunction

    class Counted:
        @staticmethod
        def apply(hidden_TD: torch.Tensor, *rest: Any) -> Any:
            scored.append(len(hidden_TD))
            return original.apply(hidden_TD, *rest)

    # TRL computes the logits of supervised positions only if Triton is available, and those of all positions on a CPU,
    # which would make the comparison unfair. In this module only `add_fused_lm_head` uses the name `_use_triton`.
    trl_utils._use_triton = lambda device: True
    trl_utils._ChunkedLogProbFunction = Counted
    # Rows are passed as objects in memory, so neither trainer decodes images. Texts are tokenized before the training.
    indices = {"index": list(range(len(rows)))}
    texts = rows.columns(indices)
    data = Dataset.from_dict(indices).with_transform(rows.columns) if "images" in texts else Dataset.from_dict(texts)
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
        result = []
        for start in range(0, len(rows), samples):
            prepared = trainer.train_dataset  # tokenized, if they are texts
            inputs = trainer.data_collator([prepared[i] for i in range(start, min(start + samples, len(rows)))])
            outputs = trainer.model(**inputs, use_cache=False, fused_lm_head=True)
            result += (-outputs.log_probs.sum(1) / outputs.label_mask.sum(1)).tolist()
        return result

    return Competitor(trainer, losses, lambda: sum(scored))


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Return all losses before training, or the measurements of one epoch after a warm-up update."""
    torch.set_num_threads(options.threads)
    rows = Rows(options.samples + (0 if options.losses else LOGICAL_BATCH), questions=options.questions)
    build: Callable[..., Competitor] = {
        "ours": partial(build_ours, questions=options.questions),
        "stored": partial(build_stored, questions=options.questions),
        "trl": build_trl,
    }[options.competitor]
    with tempfile.TemporaryDirectory() as folder:
        arguments = shared_arguments(folder, options.dtype)
        competitor = build(rows, load(options.checkpoint, options.dtype), arguments, options.size)
        trainer = competitor.trainer
        if options.losses:
            with torch.no_grad(), trainer.compute_loss_context_manager():
                return {"losses": competitor.losses()}
        if options.profile:
            recorded = StepProfile()
            trainer.add_callback(recorded)
            trainer.train()
            return recorded.read(torch.bfloat16 if options.dtype == "bf16" else torch.float32)
        clock = Clock()
        trainer.add_callback(clock)
        with resident_memory() as peak:
            trainer.train()
    steps = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {**clock.read(), "bytes": peak.bytes, "steps": steps, "scored": competitor.scored()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--competitor", choices=("ours", "stored", "trl"), required=True)
    parser.add_argument("--size", type=int, required=True, help="per micro-batch, ours: tokens, trl: samples")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--questions", type=int, default=1, help="about each image; 0: texts")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    options.result.write_text(json.dumps(work(options)))


if __name__ == "__main__":
    main()
