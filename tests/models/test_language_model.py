"""Hidden states of a language model, equal for single samples and in a mixed, padded batch."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.language_model import LanguageModel
from mllm.objectives.text import NextToken
from mllm.structures import IGNORE, Context, Mark, Sample, Turn
from mllm.tiny.checkpoints import write_tiny

TOWERS = {"vision": "model.vision_tower", "language": "model.language_model"}


def _sample(images, question="What is this?", answer="A scan"):
    rng = np.random.default_rng(len(question))
    sizes = [(60, 50), (50, 90), (90, 60)]
    pictures = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes[:images]
    ]
    return Sample([Turn("user", "<image>" * images + question), Turn("assistant", answer)], pictures)


@pytest.fixture(params=["small_gemma", "tiny_llava", "tiny_qwen2_vl"])
def folder(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_sample_has_equal_states_alone_and_in_a_mixed_batch(folder, side):
    model = LanguageModel(AutoModelForImageTextToText.from_pretrained(folder).eval(), TOWERS)
    encoder = ChatEncoder(AutoProcessor.from_pretrained(folder), max_length=4096)
    samples = [
        encoder.encode(sample)
        for sample in (_sample(1), _sample(0, "Why?", "Because of the long answer"), _sample(2, "Which one of these?"))
    ]
    batch = encoder.pad(samples, side=side)
    together = model(**batch.student).hidden_BLD
    for row, sample in enumerate(samples):
        alone = model(**encoder.pad([sample]).student).hidden_BLD[0]
        real = batch.student["attention_mask"][row].bool()
        torch.testing.assert_close(together[row][real], alone, rtol=1e-4, atol=1e-4)


def test_the_image_changes_the_hidden_states(folder):
    model = LanguageModel(AutoModelForImageTextToText.from_pretrained(folder).eval(), TOWERS)
    encoder = ChatEncoder(AutoProcessor.from_pretrained(folder), max_length=4096)
    student = encoder.pad([encoder.encode(_sample(1))]).student
    with torch.no_grad():
        state = model(**student).hidden_BLD[0, -1]
        other = model(**{**student, "pixel_values": -student["pixel_values"]}).hidden_BLD[0, -1]
    assert (state - other).abs().max() > 1e-3


def test_towers_follow_from_the_names_of_parameters(small_gemma):
    pretrained = AutoModelForImageTextToText.from_pretrained(small_gemma).requires_grad_(False)
    adapted = get_peft_model(pretrained, LoraConfig(r=2, target_modules=r".*vision_tower.*\.fc1"))
    model = LanguageModel(adapted, TOWERS)
    assert model.pretrained is pretrained
    assert model.trains("vision")
    assert not model.trains("language")
    towers = {model.tower_of(name) for name, _ in model.named_parameters()}
    assert towers == {"vision", "language", "other"}


HEADS = {"box": {"type": "BoxHead", "hidden": 32}, "mask": {"type": "MaskHead", "dim": 32}}
KINDS = {
    "medgemma": {
        "heads": {**HEADS, "box": {**HEADS["box"], "attention": 16}},
        "image_size": 112,
        "image_token_len": 16,
    },
    "image-text": {"heads": {**HEADS, "box": {"type": "BoxHead", "hidden": 32, "outline": True}}},
    "perceptionGPT": {"heads": HEADS},
}


@pytest.fixture(scope="module", params=list(KINDS))
def bundle(request, tmp_path_factory, tiny_medgemma, tiny_llava):
    """A model with heads, with changed trained tensors."""
    folders = {"medgemma": tiny_medgemma, "image-text": tiny_llava}
    folder = folders.get(request.param) or write_tiny("shikra", tmp_path_factory.mktemp("perception") / "shikra")
    return _moved(load_pretrained(ModelArgs(request.param, str(folder), lora_r=4, **KINDS[request.param]), CPU))


CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)


@torch.no_grad()
def _moved(bundle):
    generator = torch.Generator().manual_seed(0)
    for parameter in bundle.model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    bundle.model.eval()
    return bundle


def _marked(bundle):
    """Return samples: objects in the second of two images and in the question, no objects, and only a box."""
    mask = np.zeros((50, 60), dtype=bool)
    mask[10:30, 20:50] = True
    second = np.ascontiguousarray(np.pad(mask, ((20, 20), (0, 0)))[:, :50])
    pictures = _sample(2).images
    marks = [Mark(box=(20, 10, 50, 30), mask=mask), Mark(box=(5, 5, 40, 60), mask=second, image=1)]
    samples = [
        Sample(
            [Turn("user", "<image><image>What of <box>?", ((0,),)), Turn("assistant", "It is <box>", ((1, 0),))],
            pictures,
            marks=marks,
        ),
        _sample(0, "Why?", "Because"),
        Sample(
            [Turn("user", "<image>Where?"), Turn("assistant", "<box>", ((0,),))],
            pictures[:1],
            marks=[Mark(box=(0, 0, 30, 30))],
        ),
    ]
    return bundle.encoder.pad([bundle.encoder.encode(sample) for sample in samples])


@torch.no_grad()
def test_objects_are_written_over_the_embeddings_of_their_tokens(bundle):
    model, batch = bundle.model, _marked(bundle)
    embeddings, language = [], model.pretrained.get_decoder()
    hook = language.register_forward_pre_hook(
        lambda module, arguments, options: embeddings.append(options["inputs_embeds"]), with_kwargs=True
    )
    model(**batch.student)
    blank = {**batch.student, "object_positions": torch.full_like(batch.student["object_positions"], -1)}
    model(**blank)
    hook.remove()
    (with_objects, plain), positions = embeddings, batch.student["object_positions"]
    assert (positions >= 0).sum(dim=1).tolist() == [3, 0, 1]
    written = torch.zeros(with_objects.shape[:2], dtype=torch.bool)
    for sample, mark in (positions >= 0).nonzero().tolist():
        place = positions[sample, mark]
        assert batch.student["input_ids"][sample, place] == bundle.encoder.object_id
        expected = model.box_head.embed(batch.student["object_boxes"][sample, mark])
        if sample == 0:
            expected = expected + model.mask_head.embed(batch.student["object_masks"][sample, mark][None, None])[0, 0]
        torch.testing.assert_close(with_objects[sample, place], expected, rtol=1e-4, atol=1e-5)
        written[sample, place] = True
    assert torch.equal(with_objects[~written], plain[~written])
    assert (with_objects[written] - plain[written]).abs().max() > 0.1


@torch.no_grad()
def test_heads_read_the_state_before_a_token_and_the_objects_own_image(bundle):
    model, batch = bundle.model, _marked(bundle)
    stock = model.pretrained
    if model.fusion is not None:  # which adds its mixture to the states that the tower returns
        stock = AutoModelForImageTextToText.from_pretrained(stock.name_or_path)
    outputs, tower = model(**batch.student), stock.get_submodule(model.towers["vision"])
    states = tower(batch.student["pixel_values"], output_hidden_states=True).hidden_states[1:]
    patches = [state[:, -(model.mask_head.grid**2) :] for state in states]
    images = {(0, 0): 0, (0, 1): 1, (0, 2): 0, (2, 0): 2}
    for (sample, mark), image in images.items():
        position = int(batch.student["object_positions"][sample, mark])
        state = outputs.hidden_BLD[sample, position - 1][None, None, None]
        own, first = [patch[image : image + 1] for patch in patches], torch.zeros(1, 1, dtype=torch.long)
        expected = {"mask": model.mask_head.predict(state, model.mask_head.features(own), first)}
        features = model.box_head.features(own) if model.box_head.reads_image else None
        expected["box"] = model.box_head.predict(state[:, :, -1], expected["mask"], features, first)
        for name, actual in expected.items():
            torch.testing.assert_close(outputs.heads[name][sample, mark], actual[0, 0], rtol=1e-3, atol=1e-4)
    assert (outputs.heads["mask"][0, 0] - outputs.heads["mask"][0, 1]).abs().max() > 1e-3


def test_loss_and_gradients_equal_plain_autograd_over_the_models_own_logits(bundle):
    model, batch = bundle.model, _marked(bundle)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    labels = batch.targets["labels"]
    ours = NextToken(tile_bytes=20_000).total(Context(batch.targets, model(**batch.student))).sum()
    actual = torch.autograd.grad(ours, list(trained.values()), allow_unused=True)
    with model.inserting_objects(batch.student) as inputs:
        logits = model.pretrained(**inputs).logits
    theirs = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
    )
    expected = torch.autograd.grad(theirs, list(trained.values()), allow_unused=True)
    torch.testing.assert_close(ours, theirs)
    for name, mine, true in zip(trained, actual, expected, strict=True):
        assert (mine is None) == (true is None), name
        if true is not None:
            torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-4 * float(true.abs().max()) + 1e-6, msg=name)
    reached = {name.partition(".")[0] for name, mine in zip(trained, actual, strict=True) if mine is not None}
    assert {"rows", "heads", "backbone"} <= reached and ("fusion" in reached) == (model.fusion is not None)


def test_trained_state_outside_the_lora_can_be_copied_to_an_equal_model(bundle):
    model = bundle.model
    state = {name: tensor.clone() for name, tensor in model.trained_state().items()}
    parts = {name.partition(".")[0] for name in state}
    assert parts == {"heads", "rows"} | ({"fusion", "projector"} if model.fusion is not None else set())
    lora = {name for name, tensor in model.named_parameters() if tensor.requires_grad and "lora_" in name}
    others = [name for name, tensor in model.named_parameters() if tensor.requires_grad and name not in lora]
    assert len(state) == len(others) and not any("lora" in name or "backbone" in name for name in state)
    batch = _marked(bundle)
    with torch.no_grad():
        before = model(**batch.student)
        for name in others:
            model.get_parameter(name).normal_()
        model.load_trained_state(state)
        after = model(**batch.student)
    assert torch.equal(before.hidden_BLD, after.hidden_BLD)
    assert all(torch.equal(before.heads[name], after.heads[name]) for name in ("box", "mask"))


def test_heads_rows_and_fusion_are_towers(bundle):
    towers = {bundle.model.tower_of(name) for name, _ in bundle.model.named_parameters()}
    assert {"heads", "rows", "vision", "language"} <= towers
    assert all(map(bundle.model.trains, ("heads", "rows", "language")))
    assert bundle.model.trains("fusion") == bundle.model.trains("projector") == (bundle.model.fusion is not None)


def test_a_batch_norm_stays_in_evaluation_mode(tiny_llava):
    model = LanguageModel(AutoModelForImageTextToText.from_pretrained(tiny_llava), TOWERS)
    model.pretrained.model.vision_tower.add_module("norm", torch.nn.BatchNorm2d(3))
    training = {name for name, module in model.train().named_modules() if module.training}
    assert "backbone.model.vision_tower" in training
    assert "backbone.model.vision_tower.norm" not in training
