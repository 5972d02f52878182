"""Fixtures: a tiny learner on generated images and a trainer of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoProcessor, Gemma3ForConditionalGeneration, TrainingArguments

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import EncodedDataset, LogicalCollator
from mllm.dataset.loading.sampler import LogicalBatchSampler
from mllm.dataset.single_image_dataset.scenes import PhantomBoxDataset
from mllm.engine.callbacks import Checkpoints, Epochs
from mllm.engine.learner import Learner
from mllm.engine.meter import Meter
from mllm.engine.run_log import RunLog
from mllm.engine.trainer import MultimodalTrainer
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.language_model import LanguageModel
from mllm.models.medgemma.medgemma_perception import resize_images
from mllm.objectives.boxes import BoxLoss
from mllm.objectives.masks import MaskLoss
from mllm.objectives.text import NextToken
from mllm.structures import Sample, Turn

TARGETS = r".*(language_model|vision_tower)\..*\.(q_proj|v_proj|fc1|up_proj)"


class Rows:
    """Conversations of different lengths, some about an image, with noise that depends on the epoch."""

    def __init__(self, size=12):
        self.size = size

    def __len__(self):
        return self.size

    def group(self, index, epoch=0):
        return self.sample(index, epoch).group

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
    """The class `Rows`."""
    return Rows


@pytest.fixture(scope="session")
def make_bundle(tiny_medgemma):
    """A function that builds equal tiny models with LoRA; B has random values."""

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
        return SimpleNamespace(model=LanguageModel(model, towers), encoder=encoder)

    return make


class LocationRows:
    """Questions about the boxes and masks of two lesions in an image; every third sample has no image."""

    def __init__(self, size=12):
        self.marked, self.plain = PhantomBoxDataset(size, image_size=112, lesions=(1, 2)), Rows(size)

    def __len__(self):
        return len(self.marked)

    def sample(self, index, epoch=0):
        return (self.plain if index % 3 == 2 else self.marked).sample(index, epoch)


@pytest.fixture
def location_rows():
    """The class `LocationRows`."""
    return LocationRows


HEADS = {"box": {"type": "BoxHead", "hidden": 32, "outline": True}, "mask": {"type": "MaskHead", "dim": 32}}


@pytest.fixture
def make_model_with_heads(tiny_medgemma):
    """A function that builds equal tiny models with a box head and a mask head, and their objectives."""

    def make():
        args = ModelArgs(
            "medgemma", str(tiny_medgemma), lora_r=4, max_length=256, image_size=112, image_token_len=16, heads=HEADS
        )
        bundle = load_pretrained(args, Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2))
        return bundle, {"next_token": NextToken(), "box": BoxLoss(), "mask": MaskLoss()}

    return make


@pytest.fixture
def make_trainer(make_bundle, tmp_path):
    """A function that builds a trainer of `Rows`; options are those of TrainingArguments and of the collator."""

    def make(
        samples_per_piece=4,
        tokens_per_piece=None,
        dropout=0.0,
        rows=None,
        skip=False,
        batch=4,
        limit=None,
        parts=None,
        **options,
    ):
        bundle, objectives = parts or (make_bundle(dropout), {"next_token": NextToken()})
        learner = Learner(bundle.model, objectives)
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
            callbacks=[Checkpoints(limit), RunLog({"config": "test"}, meter), Epochs(sampler)],
        )

    return make


def trained(trainer):
    """The trained tensors by name."""
    return {name: value.detach().clone() for name, value in trainer.learner.state_dict().items()}


@pytest.fixture(name="trained")
def trained_fixture():
    """The function `trained`."""
    return trained
