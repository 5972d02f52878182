"""Answers do not depend on the batch, and generation does not change the state of a training run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.models.encoding.chat import ChatEncoder
from mllm.models.generation.generate import generate, stop_ids
from mllm.models.generation.sampling import Sampling, SeededSampler, generator_of
from mllm.models.language_model import LanguageModel
from mllm.protocols import Bundle
from mllm.structures import Answer, Sample, Turn
from mllm.tiny.checkpoints import write_tiny


@pytest.fixture(scope="module", params=["medgemma", "llava", "qwen2_vl"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    small = {"image_size": 224} if request.param == "medgemma" else None  # 16 x 16 patches, still 256 tokens
    folder = write_tiny(request.param, tmp_path_factory.mktemp("generation") / request.param, vision=small)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        if name.endswith("post_feedforward_layernorm.weight"):
            # With tied embeddings a random Gemma repeats the last token of the prompt, unless its layers are scaled up.
            parameter.data += 30
    return Bundle(LanguageModel(model, {}), ChatEncoder(AutoProcessor.from_pretrained(folder), max_length=1024))


def _samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    questions = [
        "<image> What is this?",
        "<image> Is there a fracture of the left or of the right arm?",
        "<image> Why?",
    ]
    return [
        Sample(
            turns=[Turn("user", question), Turn("assistant", "left out")],
            images=[Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8))],
        )
        for question in questions
    ]


def test_batched_answers_equal_single_ones_and_keep_their_order(bundle: Bundle) -> None:
    samples = _samples()
    together = generate(bundle, samples, max_new_tokens=12, batch_size=3, progress=False)
    alone = [generate(bundle, [sample], max_new_tokens=12, progress=False)[0] for sample in samples]
    assert together == alone
    texts = {answer.text for answer in together}
    assert len(texts) > 1, "the model says the same to everything: order would not be tested"


def test_greedy_answers_equal_a_loop_over_full_forwards(bundle: Bundle) -> None:
    """Reference: one forward pass over the complete text for each token, without cache and padding."""
    sample = _samples()[0]
    batch = bundle.encoder.pad([bundle.encoder.prompt(sample)])
    model = bundle.model.pretrained.eval()
    student, spoken = dict(batch.student), []
    with torch.no_grad():
        for _ in range(8):
            token = model(**student).logits[0, -1].argmax()
            if int(token) in stop_ids(bundle):
                break
            spoken.append(int(token))
            student["input_ids"] = torch.cat([student["input_ids"], token.view(1, 1)], dim=1)
            for name, fill in (("attention_mask", 1), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
                if name in student:
                    tail = torch.full((1, 1), fill, dtype=student[name].dtype)
                    student[name] = torch.cat([student[name], tail], dim=1)
    expected = bundle.encoder.tokenizer.decode(spoken, skip_special_tokens=True).strip()
    answer = generate(bundle, [sample], max_new_tokens=8, progress=False)[0]
    assert answer.text == expected
    assert answer.tokens == min(len(spoken) + 1, 8)


@pytest.mark.parametrize("penalty", [0.2, 1.2])
def test_a_repetition_penalty_depends_on_the_answer_only(bundle: Bundle, penalty: float) -> None:
    """Reference: full forward passes; the logit of each token in the answer is divided or multiplied explicitly."""
    samples, model = _samples(), bundle.model.pretrained.eval()
    options = dict(max_new_tokens=8, repetition_penalty=penalty, progress=False)
    together = generate(bundle, samples, batch_size=3, **options)
    assert together == [generate(bundle, [sample], **options)[0] for sample in samples]
    student = dict(bundle.encoder.pad([bundle.encoder.prompt(samples[1])]).student)
    prompt, spoken = student["input_ids"], []
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([prompt, torch.tensor([spoken], dtype=torch.long)], dim=1)
            lengths = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for name in ("token_type_ids", "mm_token_type_ids"):
                if name in student:
                    tail = torch.zeros(1, len(spoken), dtype=student[name].dtype)
                    lengths[name] = torch.cat([student[name], tail], dim=1)
            logits = model(**{**student, **lengths}).logits[0, -1]
            for token in set(spoken):
                logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            token = int(logits.argmax())
            if token in (*stop_ids(bundle), *bundle.encoder.processor.image_token_ids):
                break  # a forward without a cache would treat a generated image token as an image
            spoken.append(token)
    expected = bundle.encoder.tokenizer.decode(spoken, skip_special_tokens=True).strip()
    assert expected and together[1].text.startswith(expected)


def test_generation_settings_of_the_checkpoint_are_ignored(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, own = _samples()[0], bundle.model.pretrained.generation_config
    greedy = generate(bundle, [sample], max_new_tokens=8, progress=False)
    hot = dict(max_new_tokens=8, do_sample=True, temperature=5.0, seed=1, progress=False)
    sampled = generate(bundle, [sample], **hot)
    settings = dict(repetition_penalty=0.1, num_beams=2, no_repeat_ngram_size=1, top_k=1, top_p=0.1, typical_p=0.1)
    settings |= dict(suppress_tokens=list(range(100, 400)), min_length=3000, min_new_tokens=8, guidance_scale=2.0)
    settings |= dict(forced_eos_token_id=7, sequence_bias=[[[9], 50.0]], stop_strings=["e", "a"])
    settings |= dict(exponential_decay_length_penalty=(1, 9.0), num_return_sequences=2, encoder_no_repeat_ngram_size=1)
    for name, value in {**settings, "temperature": 9.0, "min_p": 1.0, "do_sample": True}.items():
        monkeypatch.setattr(own, name, value)
    assert generate(bundle, [sample], max_new_tokens=8, progress=False) == greedy
    assert generate(bundle, [sample], **hot) == sampled


def test_a_token_that_a_checkpoint_forbids_is_not_generated(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, model = _samples()[0], bundle.model.pretrained
    word = bundle.encoder.tokenizer("yes", add_special_tokens=False)["input_ids"][0]
    size = model.get_output_embeddings().weight.shape[0]
    # The scores are 2 for the word, 1 for the end of the turn, and 0 for the others:
    scores = torch.eye(size)[word] * 2 + torch.eye(size)[bundle.encoder.turn_end_id]
    monkeypatch.setattr(model.get_output_embeddings(), "forward", lambda hidden: scores.expand(*hidden.shape[:2], -1))
    assert generate(bundle, [sample], max_new_tokens=3, progress=False)[0].tokens == 3
    monkeypatch.setattr(model.generation_config, "bad_words_ids", [[word]])
    assert generate(bundle, [sample], max_new_tokens=3, progress=False) == [Answer("", tokens=1)]


def test_generation_stops_at_the_end_of_the_turn(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = _samples()[0]
    ids = bundle.encoder.tokenizer(generate(bundle, [sample], max_new_tokens=6, progress=False)[0].text)["input_ids"]
    assert bundle.encoder.turn_end_id in stop_ids(bundle)
    assert ids
    # The end of the turn is the only token that the model can generate:
    head = bundle.model.pretrained.get_output_embeddings()
    end = bundle.encoder.turn_end_id
    monkeypatch.setattr(
        head, "forward", lambda hidden: torch.eye(head.weight.shape[0])[end].expand(*hidden.shape[:2], -1)
    )
    assert generate(bundle, [sample], max_new_tokens=6, progress=False) == [Answer("", tokens=1)]


def test_sampling_follows_its_seed_and_leaves_the_random_state_alone(bundle: Bundle) -> None:
    options = dict(max_new_tokens=12, do_sample=True, temperature=5.0, progress=False)
    before = torch.get_rng_state()
    first = generate(bundle, _samples(), seed=1, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert generate(bundle, _samples(), seed=1, **options) == first
    assert generate(bundle, _samples(), seed=2, **options) != first


def test_a_sampled_answer_depends_on_the_number_of_its_sample_alone(bundle: Bundle) -> None:
    options = dict(max_new_tokens=8, do_sample=True, temperature=3.0, seed=5, progress=False)
    together = generate(bundle, _samples(), batch_size=3, **options)
    assert generate(bundle, _samples(), batch_size=1, **options) == together
    assert generate(bundle, _samples()[::-1], numbers=[2, 1, 0], batch_size=2, **options) == together[::-1]
    again = generate(bundle, [_samples()[0]] * 6, **options)
    assert again[0] == together[0] and len({answer.text for answer in again}) > 1


def test_sampled_tokens_have_the_probabilities_of_the_model() -> None:
    """Reference: the softmax of the logits, compared with the frequencies in 4,000 samples."""
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0])
    sampler = SeededSampler([generator_of(0, number) for number in range(4000)])
    tokens = sampler(torch.zeros(4000, 1), logits.expand(4000, -1)).argmax(dim=-1)
    frequencies = torch.bincount(tokens, minlength=5) / 4000
    assert frequencies[2] == 0
    assert (frequencies - logits.softmax(dim=-1)).abs().max() < 0.03


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-300])
def test_a_temperature_near_zero_selects_the_most_probable_token(temperature: float) -> None:
    """Divided by so small a number, logits are infinite, of which the sampler made the first token."""
    scores = torch.tensor([[0.0, -3.0, 7.0, 6.9]])
    for processor in Sampling(temperature, top_p=0.9, top_k=3, seed=0).processors([0]):
        scores = processor(torch.zeros(1, 1, dtype=torch.long), scores)
    assert scores.argmax(dim=-1).tolist() == [2]


def test_training_continues_after_generation(bundle: Bundle) -> None:
    model = bundle.model.train()
    frozen = next(child for name, child in model.named_modules() if name.endswith("layers.0"))
    frozen.eval()
    generate(bundle, _samples()[:1], max_new_tokens=2, progress=False)
    assert model.training
    assert not frozen.training
    encoded = bundle.encoder.encode(_samples()[0])
    hidden = model(**bundle.encoder.pad([encoded]).student).hidden_BLD
    hidden.float().square().mean().backward()
    assert any(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    model.eval()


def test_samples_may_be_an_empty_or_lazy_iterable(bundle: Bundle) -> None:
    assert generate(bundle, iter([]), progress=False) == []
    assert len(generate(bundle, iter(_samples()), max_new_tokens=1, batch_size=1, progress=False)) == 3
