"""Heads of tiny models: inputs and predictions in generation equal those in training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.dataset.single_image_dataset.scenes import PhantomBoxDataset
from mllm.engine.learner import Learner
from mllm.models.builder.builder import load_pretrained
from mllm.models.generation.generate import generate
from mllm.models.generation.options import GenerationOptions
from mllm.models.generation.requested import GeneratedText, RequestedGeneration
from mllm.models.language_model import LanguageModel
from mllm.objectives.boxes import BoxLoss
from mllm.objectives.masks import MaskLoss
from mllm.objectives.text import NextToken
from mllm.structures import Answer, Sample, Turn

HEADS = {"box": {"type": "BoxHead", "hidden": 64}, "mask": {"type": "MaskHead", "dim": 32}}
CONTEXTS = {"tiny_medgemma": 1, "tiny_llava": 5}
"""Number of hidden states per object that the mask head reads, for each model."""
OBJECTIVES = {"next_token": NextToken, "box": BoxLoss, "mask": MaskLoss}


def bundle_of(folder, precision="fp32", **options):
    args = ModelArgs(
        type="medgemma" if "medgemma" in str(folder) else "image-text",
        model_name_or_path=str(folder),
        lora_r=8,
        lora_target="all",
        max_length=256,
        heads=HEADS,
        image_size=112 if "medgemma" in str(folder) else None,
        image_token_len=16 if "medgemma" in str(folder) else None,
    )
    return load_pretrained(replace(args, **options), Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2, precision))


def heads_with_context(context):
    """Return heads: a mask head with a context, and a box head with the outline of the mask and with attention."""
    box = {**HEADS["box"], "outline": True, "attention": 16} if context > 1 else HEADS["box"]
    return {"box": box, "mask": {**HEADS["mask"], "context": context}}


@pytest.fixture(scope="module", params=CONTEXTS)
def memorized(request):
    """A model that has memorized two samples, with several objects in an answer."""
    bundle = bundle_of(request.getfixturevalue(request.param), heads=heads_with_context(CONTEXTS[request.param]))
    samples = [PhantomBoxDataset(8, image_size=112, lesions=(2, 2)).sample(number) for number in (0, 1)]
    learner = Learner(bundle.model, {name: make() for name, make in OBJECTIVES.items()})
    # The rate decays, so that this start ended within 0.4 pixels on all processors that were tried. A constant rate
    # ended within 8, and another start within 12.7.
    updates = 150
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, updates)
    batch = bundle.encoder.pad([bundle.encoder.encode(sample) for sample in samples])
    for _ in range(updates):
        loss = learner(batch.student, batch.targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return bundle, samples


def test_generated_objects_are_decoded_at_their_tokens(memorized):
    bundle, samples = memorized
    answers = generate(bundle, samples, max_new_tokens=16, progress=False)
    for answer, sample in zip(answers, samples, strict=True):
        assert answer.text == "Answer: <box> ."
        assert len(answer.marks) == len(sample.marks) == 2
        for mark, true in zip(answer.marks, sample.marks, strict=True):
            assert mark.box == pytest.approx(true.box, abs=4)
            assert mark.mask.shape == (112, 112)
            assert (mark.mask & true.mask).sum() > 0.5 * (mark.mask | true.mask).sum()
    assert answers[0].marks[0].box != answers[1].marks[0].box


def test_objects_do_not_depend_on_the_batch(memorized):
    bundle, samples = memorized
    together = generate(bundle, samples, max_new_tokens=16, progress=False, batch_size=2)
    alone = [generate(bundle, [sample], max_new_tokens=16, progress=False)[0] for sample in samples]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        for mark, twin in zip(one.marks, other.marks, strict=True):
            assert mark.box == pytest.approx(twin.box, abs=1e-2)
            assert (mark.mask != twin.mask).mean() < 1e-3


def test_objects_are_equal_with_options_of_their_own(memorized):
    """Reference: the same samples without options. One answer ends at its object, one at its length, one is sampled."""
    bundle, samples = memorized
    expected = generate(bundle, samples, max_new_tokens=16, progress=False)
    object_at = expected[0].tokens
    prompts = [bundle.encoder.prompt(sample) for sample in samples]
    pieces: list[str] = []
    options = GenerationOptions(max_new_tokens=16)
    texts = {
        0: GeneratedText(options, on_text=pieces.append),
        1: GeneratedText(replace(options, top_logprobs=2)),
        2: GeneratedText(replace(options, temperature=1.0, top_k=1)),
        3: GeneratedText(replace(options, max_new_tokens=object_at - 5)),
    }
    generation = RequestedGeneration.for_texts(bundle, texts, batch_size=4)
    given_prompts = [prompts[0], prompts[1], prompts[0], prompts[0]]
    answers = {
        number: answer for batch in generation.batches(given_prompts, range(4)) for number, answer in batch.items()
    }
    for number, reference in ((0, expected[0]), (1, expected[1]), (2, expected[0])):
        assert answers[number].text == reference.text and answers[number].tokens == reference.tokens
        for mark, other in zip(answers[number].marks, reference.marks, strict=True):
            assert mark.box == pytest.approx(other.box, abs=1e-2)
            assert np.mean(mark.mask != other.mask) < 1e-3
    assert "".join(pieces) == expected[0].text
    assert len(texts[1].probabilities) == expected[1].tokens - 1 and texts[1].end == "stop"
    assert texts[3].end == "length" and answers[3].tokens == object_at - 5
    assert len(answers[3].marks) == sum(token == bundle.encoder.object_id for token in texts[3].tokens)


@torch.no_grad()
def test_generation_equals_a_forward_pass_over_its_answer(memorized, monkeypatch):
    """With the predicted objects as input, one forward pass predicts equal objects."""
    bundle, samples = memorized
    sample, reads = samples[0], []
    predict = LanguageModel.predict_objects

    def recorded(self, *arguments):
        reads.append(predict(self, *arguments))
        return reads[-1]

    monkeypatch.setattr(LanguageModel, "predict_objects", recorded)
    answer: Answer = generate(bundle, [sample], max_new_tokens=16, progress=False)[0]
    assert len(reads) == len(answer.marks) == 2, "one object is read at a time"
    boxes, logits = (torch.cat([predictions[name] for predictions in reads], dim=1) for name in ("box", "mask"))
    boxes = boxes.clamp(0, 1)
    spoken = Turn("assistant", "Answer: <box> .", ((0, 1),))
    again = Sample([sample.turns[0], spoken], sample.images, marks=list(answer.marks))
    batch = bundle.encoder.pad([bundle.encoder.encode(again)])
    # The marks in pixels of the image, which are the input of the encoder, equal the boxes of the heads.
    torch.testing.assert_close(batch.student["object_boxes"], boxes, rtol=0, atol=1e-6)
    masks = {"object_masks": logits.sigmoid() > bundle.model.mask_head.threshold}
    bundle.model.eval()
    outputs = bundle.model(**batch.student | masks)
    predictions = outputs.heads
    torch.testing.assert_close(predictions["box"].clamp(0, 1), boxes, rtol=0, atol=1e-5)
    torch.testing.assert_close(predictions["mask"], logits, rtol=1e-3, atol=1e-3)
    other = {"object_boxes": 1 - boxes[..., [2, 3, 0, 1]], "object_masks": ~masks["object_masks"]}
    changed = (bundle.model(**batch.student | other).hidden_BLD - outputs.hidden_BLD).abs().amax(dim=(0, 2))
    first = int(batch.student["object_positions"][0, 0])
    assert changed[:first].max() < 1e-5 and changed[first:].max() > 1e-2, "what it was told has no influence"


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "precision", "near"),
    [
        ({"load_in_4bit": True}, "fp32", 1e-4),
        ({}, "fp16", 2e-2),
        ({}, "bf16", 5e-2),
        ({"heads": heads_with_context(3)}, "fp32", 1e-4),
        ({"heads": heads_with_context(100)}, "fp32", 1e-4),  # more than the length of the short question with padding
    ],
)
def test_generation_equals_training_for_other_weights(tiny_llava, options, precision, near, monkeypatch):
    """A model that generates only object tokens, alone and in a batch with a longer question."""
    bundle = bundle_of(tiny_llava, precision=precision, **options)
    model, token = bundle.model, bundle.encoder.object_id
    generator = torch.Generator().manual_seed(0)
    for parameter in model.heads.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.box_head.reader[-1].bias += torch.tensor([2.0, 2.0, 0.0, 0.0])  # beyond the image at the lower right
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 112, 3), dtype=np.uint8))
    questions = ["<image>Where?", "<image>Where is any of the lesions that were seen in the left lung before?"]
    samples = [Sample([Turn("user", question)], [picture]) for question in questions]
    project = model.pretrained.get_output_embeddings().register_forward_hook(
        lambda module, arguments, logits: torch.zeros_like(logits).index_fill_(-1, torch.tensor(token), 9.0)
    )
    answers = generate(bundle, samples, max_new_tokens=3, progress=False)
    alone = [generate(bundle, [sample], max_new_tokens=3, progress=False)[0] for sample in samples]
    project.remove()
    for sample, answer, single in zip(samples, answers, alone, strict=True):
        assert len(answer.marks) == len(single.marks) == 3
        pairs = list(zip(answer.marks, single.marks, strict=True))
        assert all((mark.mask != twin.mask).mean() < near for mark, twin in pairs)
        prompt = bundle.encoder.pad([bundle.encoder.prompt(sample)]).student
        start = prompt["input_ids"].shape[1]
        mask_head = model.mask_head
        student = {
            **prompt,
            "input_ids": torch.cat([prompt["input_ids"], torch.full((1, 3), token)], dim=1),
            "attention_mask": torch.ones(1, start + 3, dtype=torch.long),
            "object_positions": torch.arange(start, start + 3)[None],
            "object_boxes": torch.zeros(1, 3, 4),
            "object_has_box": torch.ones(1, 3, dtype=torch.bool),
            "object_masks": torch.zeros(1, 3, mask_head.size, mask_head.size, dtype=torch.bool),
            "object_has_mask": torch.zeros(1, 3, dtype=torch.bool),
            "object_images": torch.zeros(1, 3, dtype=torch.long),
        }
        for number in range(3):  # each predicted object is fed back before the next one is predicted
            actual = model.eval()(**student).heads
            assert actual["box"][0, number, 2:].min() > 1.05
            student["object_boxes"][0, number] = actual["box"][0, number].clamp(0, 1)
            student["object_masks"][0, number] = actual["mask"][0, number].sigmoid() > mask_head.threshold
            student["object_has_mask"][0, number] = student["object_masks"][0, number].any()
        expected = student["object_boxes"][0] * torch.tensor([112, 80, 112, 80])
        for box, mark, twin in zip(expected.tolist(), answer.marks, single.marks, strict=True):
            assert mark.box == pytest.approx(box, abs=112 * near) and twin.box == pytest.approx(box, abs=112 * near)
        assert len({mark.box for mark in answer.marks}) == 3


def test_an_object_of_the_question_is_embedded(memorized):
    bundle, samples = memorized
    sample = samples[0]
    turns = [Turn("user", "<image> What is at <box>?", ((0,),)), Turn("assistant", "A lesion.")]
    hidden = []
    for index in (0, 1):
        single = Sample(turns, sample.images, marks=[sample.marks[index]])
        batch = bundle.encoder.pad([bundle.encoder.encode(single)])
        assert not batch.targets["boxes_known"].any() and int((batch.student["object_positions"] >= 0).sum()) == 1
        with torch.no_grad():
            hidden.append(bundle.model.eval()(**batch.student).hidden_BLD)
    assert not torch.allclose(hidden[0], hidden[1], atol=1e-3)


def test_every_head_has_gradients_in_a_batch_without_objects_or_images(memorized):
    bundle, _ = memorized
    learner = Learner(bundle.model, {name: make() for name, make in OBJECTIVES.items()})
    batch = bundle.encoder.pad([bundle.encoder.encode(Sample([Turn("user", "Why?"), Turn("assistant", "So.")]))])
    learner.zero_grad()
    learner(batch.student, batch.targets)["loss"].backward()
    for name, parameter in bundle.model.heads.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
    assert bundle.model.rows.input.grad is not None


def test_only_the_expected_parameters_train(memorized):
    bundle, _ = memorized
    towers = {bundle.model.tower_of(name) for name, p in bundle.model.named_parameters() if p.requires_grad}
    assert towers == {"heads", "rows", "language", "vision"}
    names = {name.partition(".")[0] for name in bundle.model.trained_state()}
    assert names == {"heads", "rows"}
