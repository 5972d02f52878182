"""Families of the installed transformers: each is right from loading to answers, or refused in a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from bitsandbytes.nn import Linear4bit
from family_checkpoints.image_checks import (
    batches,
    check_shared_answers,
    conversation,
    gradients,
    loss_of,
    packs,
    picture,
    reads_stored_features,
    shares_images,
)
from family_checkpoints.records import CASES, Case
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    AutoTokenizer,
    Cosmos3EdgeProcessor,
    GenerationConfig,
    GotOcr2Processor,
    PPChart2TableProcessor,
)

from mllm.config.hardware import Hardware
from mllm.config.rules.sharing import ANSWERED
from mllm.config.schema import ModelArgs
from mllm.dataset.loading.collator import LogicalCollator
from mllm.engine.learner import Learner
from mllm.engine.padding_check import padded_pair
from mllm.engine.preflight import preflight
from mllm.errors import ConfigError
from mllm.export.adapter import write
from mllm.export.facts import Facts
from mllm.export.gguf.model import FAMILIES as GGUF
from mllm.export.merge import merge
from mllm.export.settings import encoding_settings
from mllm.models.builder.builder import load_pretrained
from mllm.models.generation.generate import generate, stop_ids
from mllm.objectives.text import NextToken
from mllm.protocols import Bundle
from mllm.report.families import RESULTS
from mllm.structures import IGNORE, Sample

CPU = Hardware("cpu", "a processor", None, 0, 0, 8 << 30, 2)
AUTO = {"causal-lm": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
CLOSE: dict[str, Any] = dict(rtol=2e-4, atol=2e-4)


def conversations(case: Case) -> list[Sample]:
    """Return samples with one image, without one, and with two of other sizes; texts alone for a model of text."""
    if case.type in AUTO and case.name != "t5gemma2":
        return [conversation(), conversation(question="Why is it?", answer="A shadow"), conversation(question="Who?")]
    samples = [
        conversation(picture(80, 60)),
        conversation(question="Why?", answer="A shadow"),
        conversation(picture(50, 90), picture(120, 60), question="Which?"),
    ]
    if case.name == "mllama":  # batches have rows with equal numbers of images, here one tile and two
        samples.append(conversation(picture(120, 60), question="Where?"))
    return samples


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The results in the package. With `--record-families` those of the tests that ran replace them."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))["families"]
    yield results
    if request.config.getoption("--record-families"):
        known = {case.name: results[case.name] for case in CASES if case.name in results}
        content = {"transformers": transformers.__version__, "families": known}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_a_family_is_right_or_refused(
    case: Case, tmp_path: Path, recorded: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    records = request.config.getoption("--record-families")
    if not (case.always or records or request.config.getoption("--all-families")):
        pytest.skip("a family that differs little from another one; run with --all-families")
    if case.package:
        pytest.importorskip(case.package)
    folder = case.write(tmp_path / "base")
    result: dict[str, Any] = {"type": case.type, "refused": case.refused}
    if case.refused:
        result["answers"] = check_refusal(case, folder)
    else:
        result |= check_training(case, folder, tmp_path)
    if records:
        recorded[case.name] = result
    assert result == recorded[case.name], "run with --record-families and -n 0, and renew config/FAMILIES.md"


def check_training(case: Case, folder: Path, out: Path) -> dict[str, bool]:
    """Make all checks of a family, and return what it supports."""
    bundle, samples = load(case, folder), conversations(case)
    stock = AUTO.get(case.type, AutoModelForImageTextToText).from_pretrained(folder).eval()
    check_logits(bundle, stock, samples)
    check_labels(bundle, folder, samples)
    fill_adapter(bundle)
    check_as_a_run(bundle, samples)
    check_batch(bundle, samples)
    check_look_ahead(bundle, samples[0])
    check_checkpointing(bundle, samples)
    check_update(bundle, samples)
    check_answers(bundle, check_merge(case, bundle, samples, folder, out), samples)
    stores = reads_stored_features(bundle, samples, out)
    packed = packs(bundle, samples, case.type)
    if stock.config.model_type in ANSWERED and case.type not in AUTO:
        check_shared_answers(bundle)
    return {
        "vision_lora": bool(bundle.model.trains("vision")),
        "four_bit": trains_in_4_bits(case, folder, samples),
        "features": stores,
        "packing": packed,
        "shared_images": shares_images(bundle),
        "gguf": stock.config.model_type in GGUF,
    }


def check_refusal(case: Case, folder: Path) -> bool:
    """Check that a family cannot be trained. Return True if it answers, as stock transformers does.

    A family that is refused when it is loaded cannot answer. Another one is refused with the same sentence, or with the
    error of its own code.
    """
    with pytest.raises(ConfigError, match=case.refused):
        check_as_a_run(load(case, folder), conversations(case))
    try:
        bundle = load(case, folder, lora_r=None)
        generate(bundle, conversations(case)[:1], max_new_tokens=1, batch_size=1, progress=False)
    except ConfigError as error:
        assert re.search(f"{case.refused}|fails while it generates an answer .*: this architecture cannot", str(error))
        return False
    stock = AUTO.get(case.type, AutoModelForImageTextToText).from_pretrained(folder).eval()
    check_answers(bundle, stock, conversations(case))
    return True


def fill_adapter(bundle: Bundle) -> None:
    """Fill the B matrices of the LoRA, which begin at zero."""
    with torch.no_grad():
        for name, parameter in bundle.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)


def trains_in_4_bits(case: Case, folder: Path, samples: list[Sample]) -> bool:
    """Return True if a model with 4-bit weights can be trained; False if it is refused in a sentence."""
    try:
        bundle = load(case, folder, load_in_4bit=True)
        fill_adapter(bundle)
        check_as_a_run(bundle, samples)
    except ConfigError as error:
        assert "load_in_4bit" in str(error) or "fails on the first batch" in str(error)
        return False
    assert any(isinstance(module, Linear4bit) for module in bundle.model.modules())
    return all(bool(gradient.isfinite().all() and gradient.any()) for gradient in gradients(bundle, samples).values())


def load(case: Case, folder: Path, lora_r: int | None = 2, **options: Any) -> Bundle:
    """Return the model with a LoRA on all towers."""
    torch.manual_seed(0)
    args = ModelArgs(case.type, str(folder), lora_r=lora_r, lora_target="all", max_length=2048, **options)
    bundle = load_pretrained(args, CPU)
    bundle.model.eval()
    return bundle


@torch.no_grad()
def check_logits(bundle: Bundle, stock: Any, samples: list[Sample]) -> None:
    """Compare the logits with those of stock transformers; a new LoRA changes nothing."""
    for sample in samples[:2]:
        student = bundle.encoder.pad([bundle.encoder.encode(sample)]).student
        outputs = bundle.model(**student)
        logits = outputs.vocabulary(outputs.hidden_BLD)
        if outputs.softcap is not None:
            logits = outputs.softcap * torch.tanh(logits / outputs.softcap)
        torch.testing.assert_close(logits, stock(**student).logits, **CLOSE)


def check_labels(bundle: Bundle, folder: Path, samples: list[Sample]) -> None:
    """Compare the prompt with the outputs of the checkpoint's own processor; all behind it is supervised."""
    encoder: Any = bundle.encoder
    for sample in samples:
        encoded, prompt = encoder.encode(sample), encoder.prompt(sample)
        ids, labels = encoded.student["input_ids"], encoded.targets["labels"]
        if "decoder_input_ids" in encoded.student:
            ids = encoded.student["decoder_input_ids"]
        start = 1 if "decoder_input_ids" in encoded.student else len(prompt)
        assert (labels[:start] == IGNORE).all() and torch.equal(labels[start:], ids[start:])
        assert encoder.tokenizer.decode(labels[start:]).strip() == sample.turns[-1].text + encoder.turn_end.strip()
        assert int(labels[-1]) in stop_ids(bundle)
        expected = own_inputs(folder, sample, "decoder_input_ids" in encoded.student, not encoder.image_token_ids)
        student = encoder.pad([prompt]).student
        if "decoder_input_ids" not in encoded.student:
            assert torch.equal(encoded.student["input_ids"][: len(prompt)], prompt.student["input_ids"])
        for name, tensor in expected.items():
            if name in student:
                torch.testing.assert_close(student[name], tensor, msg=lambda text, name=name: f"{name}: {text}")
        assert {"input_ids", "attention_mask"} <= expected.keys() & student.keys()
        assert not sample.images or set(student) >= set(expected) - {"labels", "batch_num_images"}


def own_inputs(folder: Path, sample: Sample, is_encoder_decoder: bool, is_text: bool) -> dict[str, Tensor]:
    """Return the question as the checkpoint's processor encodes it, or its tokenizer for a model of text."""
    question = sample.turns[0].text.replace("<image>", "")
    processor: Any
    if is_text or not (folder / "processor_config.json").exists():
        processor = AutoTokenizer.from_pretrained(folder)
        if processor.chat_template is None:
            return dict(processor(question, return_tensors="pt"))
        messages: list[Any] = [{"role": "user", "content": question}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        text = text.removeprefix(processor.bos_token) if is_encoder_decoder else text
        return dict(processor(text, return_tensors="pt", add_special_tokens=False))
    processor = AutoProcessor.from_pretrained(folder)
    if is_encoder_decoder:
        text = processor.image_token * len(sample.images) + question
        return dict(processor(text=text, images=sample.images or None, return_tensors="pt"))
    if processor.chat_template is None:  # PaliGemma, which writes `<bos>` and the line feed itself beside an image
        if not sample.images:
            return dict(processor.tokenizer(f"<bos>{question}\n", return_tensors="pt", add_special_tokens=False))
        return dict(
            processor(text="<image>" * len(sample.images) + question, images=sample.images, return_tensors="pt")
        )
    content = [*({"type": "image"} for _ in sample.images), {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    bos = processor.tokenizer.bos_token
    special = not (bos and text.startswith(bos))
    if not sample.images and isinstance(
        processor, (GotOcr2Processor, PPChart2TableProcessor)
    ):  # which refuses texts without an image
        return dict(processor.tokenizer([text], return_tensors="pt"))
    types = {"return_mm_token_type_ids": True} if isinstance(processor, Cosmos3EdgeProcessor) else {}
    images = sample.images or None
    outputs = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=special, **types)
    return {name: torch.as_tensor(value) for name, value in outputs.items()}


def check_as_a_run(bundle: Bundle, samples: list[Sample]) -> None:
    """Make the checks before the first update of a run: gradients, look-ahead, padding, and the model's own loss."""
    learner = Learner(bundle.model, {"next_token": NextToken()}).eval()
    collate = LogicalCollator(bundle.encoder.pad)
    encoded = [bundle.encoder.encode(sample) for sample in samples]
    preflight(learner, collate(encoded), Accelerator(cpu=True), pair=padded_pair(collate, [encoded]))


@torch.no_grad()
def check_batch(bundle: Bundle, samples: list[Sample]) -> None:
    """Compare the states of each sample in a padded batch with those that it has alone."""
    for group in batches(bundle, samples):
        together = bundle.model(**bundle.encoder.pad(group).student).hidden_BLD
        for row, encoded in enumerate(group):
            alone = bundle.model(**bundle.encoder.pad([encoded]).student).hidden_BLD[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, **CLOSE)


@torch.no_grad()
def check_look_ahead(bundle: Bundle, sample: Sample) -> None:
    """Change the last tokens of an answer, which must not change the states before them."""
    student = bundle.encoder.pad([bundle.encoder.encode(sample)]).student
    name = "decoder_input_ids" if "decoder_input_ids" in student else "input_ids"
    changed = student[name].clone()
    changed[0, -3:-1] = changed[0, [-2, -3]]
    assert not torch.equal(changed, student[name])
    before = bundle.model(**student).hidden_BLD[0]
    after = bundle.model(**{**student, name: changed}).hidden_BLD[0]
    torch.testing.assert_close(after[:-3], before[:-3], **CLOSE)
    assert (after[-3:] - before[-3:]).abs().max() > 1e-3


def check_checkpointing(bundle: Bundle, samples: list[Sample]) -> None:
    """Compare the gradients with and without gradient checkpointing, which change no buffer of the base."""
    model: Any = bundle.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    expected = gradients(bundle, samples)
    model.enable_checkpointing({"use_reentrant": False})
    for name, gradient in gradients(bundle, samples).items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale + 1e-7, msg=name)
    model.pretrained.gradient_checkpointing_disable()
    model.eval()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def check_update(bundle: Bundle, samples: list[Sample]) -> None:
    """Make one small step against the gradient, which lowers the loss by its length times the gradient's norm."""
    with torch.no_grad():
        before = float(loss_of(bundle, samples))
    all_gradients = gradients(bundle, samples)
    assert all(gradient.any() for gradient in all_gradients.values())
    norm = float(torch.stack([gradient.square().sum() for gradient in all_gradients.values()]).sum().sqrt())
    parameters = dict(bundle.model.named_parameters())
    step = 1e-4 * before / norm**2
    with torch.no_grad():
        for name, gradient in all_gradients.items():
            parameters[name].sub_(gradient, alpha=step)
        after = float(loss_of(bundle, samples))
    assert before - after == pytest.approx(1e-4 * before, rel=0.2)


@torch.no_grad()
def check_merge(case: Case, bundle: Bundle, samples: list[Sample], folder: Path, out: Path) -> Any:
    """Write and merge the adapter, and compare stock transformers on the merged model with the adapted model."""
    args = ModelArgs(case.type, str(folder), lora_r=2, lora_target="all", max_length=2048)
    adapter = write(bundle, out / "adapter", facts=Facts(str(folder), encoding_settings(asdict(args))))
    merge(str(adapter), out / "merged", compare=False)
    merged = AUTO.get(case.type, AutoModelForImageTextToText).from_pretrained(out / "merged").eval()
    for sample in samples[:2]:
        student = bundle.encoder.pad([bundle.encoder.encode(sample)]).student
        expected = bundle.model.backbone(**student).logits
        torch.testing.assert_close(merged(**student).logits, expected, rtol=1e-3, atol=1e-3)
    return merged


@torch.no_grad()
def check_answers(bundle: Bundle, merged: Any, samples: list[Sample]) -> None:
    """Compare answers in a batch, with and without images, with those of stock transformers to one question."""
    encoder: Any = bundle.encoder
    merged.generation_config = GenerationConfig()  # BART's config forces an end at the maximum length
    answers = generate(bundle, samples, max_new_tokens=4, batch_size=3, progress=False)
    for sample, answer in zip(samples, answers, strict=True):
        student = encoder.pad([encoder.prompt(sample)]).student
        options = GenerationConfig(
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=sorted(stop_ids(bundle)),
            pad_token_id=encoder.tokenizer.pad_token_id,
            decoder_start_token_id=encoder.decoder_start_id,
        )
        tokens = merged.generate(**student, generation_config=options)[0]
        begin = 1 if merged.config.is_encoder_decoder else len(student["input_ids"][0])
        expected = encoder.read_answer(tokens[begin:].cpu())
        assert answer.text == expected.text
