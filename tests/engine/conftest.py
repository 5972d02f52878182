"""A tiny learner on generated pictures, and a trainer of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoProcessor, Gemma3ForConditionalGeneration, TrainingArguments

from mllm.dataset.collator import EncodedDataset, LogicalCollator
from mllm.dataset.sampler import LogicalBatchSampler
from mllm.engine.callbacks import Checkpoints, Epochs, Guard, RunLog
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.engine.trainer import MultimodalTrainer
from mllm.models.encoder import ChatEncoder
from mllm.models.medgemma.medgemma_perception import resize_images
from mllm.models.perception import PerceptionModel
from mllm.objectives.text import NextToken
from mllm.structures import Sample, Turn

TARGETS = r".*(language_model|vision_tower)\..*\.(q_proj|v_proj|fc1|up_proj)"


class Rows:
    """Conversations of many lengths, some about a picture, with noise that depends on the epoch."""

    def __init__(self, size=12):
        self.size = size

    def __len__(self):
        return self.size

    def sample(self, index, epoch=0):
        rng = np.random.default_rng((7, epoch, index))
        words = ["chest", "normal", "lesion", "left", "3.5 mm", "opacity"]
        answer = " ".join(rng.choice(words, size=1 + index % 5))
        question = " ".join(rng.choice(words, size=1 + (3 * index) % 7))
        picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        images = [] if index % 3 == 2 else [picture]
        turns = [Turn("user", "<image>" * len(images) + question), Turn("assistant", answer)]
        return Sample(turns, images, source=f"rows, row {index}")


@pytest.fixture
def rows():
    """The class of those conversations."""
    return Rows


@pytest.fixture(scope="session")
def make_bundle(tiny_medgemma):
    """Builds the same tiny model with LoRA (B filled) again and again."""

    def make(dropout=0.0):
        torch.manual_seed(0)
        processor = AutoProcessor.from_pretrained(tiny_medgemma)
        model = Gemma3ForConditionalGeneration.from_pretrained(tiny_medgemma)
        resize_images(model, processor, 112, tokens=16)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS, lora_dropout=dropout))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        encoder = ChatEncoder(processor, max_length=256)
        towers = {"language": "model.language_model", "vision": "model.vision_tower"}
        return SimpleNamespace(model=PerceptionModel(model, towers), encoder=encoder)

    return make


@pytest.fixture
def make_trainer(make_bundle, tmp_path):
    """Builds a trainer over `Rows`; options are those of TrainingArguments and of the collator."""

    def make(
        samples_per_piece=4, tokens_per_piece=None, dropout=0.0, rows=None, skip=False, batch=4, limit=None, **options
    ):
        bundle = make_bundle(dropout)
        learner = Learner(bundle.model, {"next_token": NextToken()})
        rows = rows or Rows()
        sampler = LogicalBatchSampler(len(rows), batch, seed=3)
        defaults = dict(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            learning_rate=1e-3,
            per_device_train_batch_size=batch,
            disable_tqdm=True,
            label_names=[],
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            seed=0,
        )
        meter = Meter()
        return MultimodalTrainer(
            learner,
            TrainingArguments(**{**defaults, **options}),
            train_dataset=EncodedDataset(rows, bundle.encoder.encode),
            train_sampler=sampler,
            collate=LogicalCollator(
                bundle.encoder.pad, samples_per_piece=samples_per_piece, tokens_per_piece=tokens_per_piece
            ),
            eval_dataset=EncodedDataset(Rows(5), bundle.encoder.encode),
            eval_sampler=LogicalBatchSampler(5, 2, shuffle=False),
            meter=meter,
            skip_failures=skip,
            memory_advice="Lower, in this order: max_length (now 256)",
            callbacks=[Guard(), Checkpoints(limit), RunLog({"config": "test"}, meter), Epochs(sampler)],
        )

    return make


def trained(trainer):
    """The trained tensors by name."""
    return {name: value.detach().clone() for name, value in trainer.learner.state_dict().items()}


@pytest.fixture(name="trained")
def trained_fixture():
    """Reads the trained tensors of a trainer."""
    return trained
