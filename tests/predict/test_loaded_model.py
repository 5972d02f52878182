"""Questions in Python: answers equal those of transformers, alone and in batches, whole and in pieces."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from pydicom.data import get_testdata_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from mllm import load
from mllm.errors import ConfigError, DataError
from mllm.models.generation.options import GenerationOptions
from mllm.predict.loaded_model import LoadedModel
from mllm.predict.request import Request
from mllm.structures import Mark, Sample, Turn
from mllm.tiny.adapter import write_tiny_adapter

QUESTIONS = ["What is this?", "Why?", "Is the heart of this patient normal, or is it too large?", "Where?"]
HOT = dict(temperature=2.0, max_new_tokens=16)


@pytest.fixture(scope="module")
def model(generating_base: Path, generating_adapter: Path, other_adapter: Path) -> LoadedModel:
    """Two adapters, and their base without one."""
    return load(adapters={"chest/x.ray": generating_adapter, "other": other_adapter}, model=generating_base)


def by_peft(base: Path, adapter: Path | None, image: Path, question: str) -> str:
    """Return the reference answer: PEFT, the chat template of the processor and `generate`."""
    processor, network = AutoProcessor.from_pretrained(base), AutoModelForImageTextToText.from_pretrained(base)
    network = network if adapter is None else PeftModel.from_pretrained(network, adapter)
    content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = network.eval().generate(**inputs, max_new_tokens=8, do_sample=False)
    return str(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_each_adapter_answers_as_if_it_were_alone(
    model: LoadedModel, generating_base: Path, generating_adapter: Path, other_adapter: Path, pictures: Path
) -> None:
    assert model.names == ["chest/x.ray", "other", "medgemma"]
    image = pictures / "0.png"
    expected = [by_peft(generating_base, path, image, "Why?") for path in (generating_adapter, other_adapter, None)]
    assert len(set(expected)) == 3
    alone = [model.ask(image, "Why?", model=name, max_new_tokens=8).text for name in model.names]
    assert alone == expected
    sample = Sample([Turn("user", "Why?")], [Image.open(image).convert("RGB")])
    mixed = [Request(sample, GenerationOptions(max_new_tokens=8), name) for name in [*model.names, *model.names[::-1]]]
    answers = [answer for (answer,) in model.answer_all(mixed)]
    assert [answer.text for answer in answers] == expected + expected[::-1]
    assert [answer.model for answer in answers] == model.names + model.names[::-1]
    with pytest.raises(ConfigError, match="there is no model 'othr': did you mean 'other'"):
        model.ask(image, "Why?", model="othr")


def test_answers_are_equal_alone_in_batches_and_in_pieces(model: LoadedModel, pictures: Path) -> None:
    """Every request has options of its own: seed, length, temperature, stop texts, number of answers."""
    images = [Image.open(pictures / f"{number}.png") for number in range(3)]
    pieces: dict[tuple[int, int], str] = {}

    def request(number: int) -> Request:
        def append(which: int, piece: str) -> None:
            pieces[number, which] = pieces.get((number, which), "") + piece

        options = GenerationOptions(
            max_new_tokens=3 + 5 * (number % 4),
            temperature=number % 3,
            top_p=0.9 if number % 3 == 2 else 1.0,
            seed=number // 2,
            repetition_penalty=1.3 if number == 5 else 1.0,
            stop=("a", "th") if number % 5 == 4 else (),
        )
        sample = Sample([Turn("user", QUESTIONS[number % 4])], [images[number % 2]] if number % 4 else [])
        return Request(sample, options, n=1 + number % 2, on_text=append)

    requests = [request(number) for number in range(12)]
    together = list(model.answer_all(requests))
    assert {key: text for key, text in pieces.items() if text} == {
        (number, which): answer.text
        for number, answers in enumerate(together)
        for which, answer in enumerate(answers)
        if answer.text
    }
    alone = [next(model.answer_all([one])) for one in requests]
    assert [[a.text for a in answers] for answers in alone] == [[a.text for a in answers] for answers in together]
    assert [[a.end for a in answers] for answers in alone] == [[a.end for a in answers] for answers in together]
    assert {answer.end for answers in together for answer in answers} >= {"stop", "length"}
    assert len({answer.text for answer in together[5]}) == 2, "two answers have random numbers of their own"


def test_an_answer_ends_before_a_stop_text(text_model: LoadedModel) -> None:
    whole = text_model.ask(None, "Why is the heart normal?", **HOT)
    assert len(whole.text) > 12 and whole.end == "length" and whole.tokens == 16
    stop = whole.text[6:9]
    cut = text_model.ask(None, "Why is the heart normal?", stop=["never in the answer", stop], **HOT)
    assert cut.text == whole.text[: whole.text.index(stop)].rstrip() and cut.end == "stop" and cut.tokens < 16
    pieces = list(text_model.stream(None, "Why is the heart normal?", stop=stop, **HOT))
    assert "".join(pieces) == cut.text
    pieces = list(text_model.stream(None, "Why is the heart normal?", **HOT))
    assert "".join(pieces) == whole.text and len(pieces) > 4


def test_log_probabilities_are_those_of_a_forward_pass(text_model: LoadedModel, generating_text_model: Path) -> None:
    """Reference: the logits of transformers for prompt and answer, also with a temperature and a penalty."""
    tokenizer = AutoTokenizer.from_pretrained(generating_text_model)
    network = AutoModelForCausalLM.from_pretrained(generating_text_model)
    messages = [{"role": "user", "content": "Why?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    options = dict(top_logprobs=3, max_new_tokens=6, repetition_penalty=1.5, temperature=1.5)
    for answer in (text_model.ask(None, "Why?", **options), text_model.ask(None, ["Why?", *QUESTIONS], **options)[0]):
        ids = [token.id for token in answer.probabilities]
        assert len(ids) == 6 and answer.prompt_tokens == len(prompt)
        with torch.no_grad():
            logits = network(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.float().log_softmax(dim=-1)
        for position, token in enumerate(answer.probabilities):
            assert token.logprob == pytest.approx(expected[position, token.id].item(), abs=1e-4)
            values, others = expected[position].topk(3)
            assert [one.id for one in token.alternatives] == others.tolist()
            assert [one.logprob for one in token.alternatives] == pytest.approx(values.tolist(), abs=1e-4)
            assert token.text == tokenizer.decode([token.id])
    assert text_model.ask(None, "Why?", max_new_tokens=2).probabilities == ()


def test_a_cancelled_answer_ends_early(text_model: LoadedModel) -> None:
    seen: list[str] = []
    sample = Sample([Turn("user", "Why is the heart normal?")])
    options = GenerationOptions(max_new_tokens=400)
    request = Request(sample, options, on_text=lambda _, piece: seen.append(piece), is_cancelled=lambda: len(seen) >= 3)
    other = Request(sample, GenerationOptions(max_new_tokens=16))
    (cancelled,), (kept,) = text_model.answer_all([request, other])
    assert cancelled.end == "cancelled" and cancelled.tokens < 100
    assert (
        kept.end == "length" and kept.text == text_model.ask(None, "Why is the heart normal?", max_new_tokens=16).text
    )


def test_a_question_can_follow_an_answer(model: LoadedModel, pictures: Path) -> None:
    first = model.ask(pictures / "0.png", "What is this?", max_new_tokens=4)
    second = model.ask(pictures / "1.png", "And this?", after=first, max_new_tokens=4)
    sample = Sample(
        [Turn("user", "<image>What is this?"), Turn("assistant", first.text), Turn("user", "<image>And this?")],
        [Image.open(pictures / name) for name in ("0.png", "1.png")],
    )
    ((expected,),) = model.answer_all([Request(sample, GenerationOptions(max_new_tokens=4))])
    assert second.text == expected.text and len(second.images) == 2
    assert second.text != model.ask(pictures / "1.png", "And this?", max_new_tokens=4).text


@pytest.mark.parametrize("image", [3, np.zeros((4, 4)), b"x", [None, 3.5]])
def test_another_value_is_no_image(model: LoadedModel, image: Any) -> None:
    with pytest.raises(
        DataError, match="an image must be a file, a picture of Pillow, or an object with a 'path', not"
    ):
        model.ask(image, "What is this?")


def test_images_are_files_pictures_or_parts_of_files(model: LoadedModel, pictures: Path) -> None:
    path = get_testdata_file("CT_small.dcm")
    wide, same, plain = model.ask([{"path": path, "window": "lung"}, None, path], ["What?"] * 3, max_new_tokens=1)
    assert same.images == []
    lung = model.ask(path, "What?", window="lung", max_new_tokens=1)
    assert wide.images == lung.images != plain.images
    two = model.ask([pictures / "0.png", Image.open(pictures / "1.png")], "What?", max_new_tokens=1)
    assert len(two.images) == 2
    several = model.ask([pictures / "0.png", None], ["What?", "Why?"], max_new_tokens=1)
    assert [len(answer.images) for answer in several] == [1, 0]
    with pytest.raises(DataError, match=r"mode I;16 has more than 8 bits: pass its file"):
        model.ask(Image.new("I;16", (4, 4)), "What?")
    with pytest.raises(ConfigError, match="there is no option 'windw': did you mean 'window'"):
        model.ask(path, "What?", windw="lung")


def test_a_prompt_longer_than_the_context_is_refused_and_an_answer_fits_into_it(
    text_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = text_model.ask(None, "Why?", max_new_tokens=1).prompt_tokens
    config = text_model.model.pretrained.config.get_text_config(decoder=True)
    monkeypatch.setattr(config, "max_position_embeddings", length + 3)
    assert text_model.ask(None, "Why?", max_new_tokens=100).tokens == 3
    with pytest.raises(DataError, match=rf"the question: it has \d+ tokens, and the model reads {length + 3} with"):
        text_model.ask(None, "Why is the heart of the patient normal?")


def test_a_notebook_shows_pictures_with_marks_and_text_without_markup(
    model: LoadedModel, pictures: Path, pointing: Any, tmp_path: Path
) -> None:
    answer = model.ask([pictures / "0.png", pictures / "1.png"], "Where <b>?", max_new_tokens=4)
    assert answer.boxes == [(10.0, 5.04, 40.0, 30.0), (20.0, 10.0, 50.0, 30.0), (0.0, 0.0, 20.0, 20.0)]
    assert [mask.sum() for mask in answer.masks] == [600]
    html = answer._repr_html_()
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', html)) == 2
    assert "box x1 y1 x2 y2 = 10.0 5.0 40.0 30.0" in html and "in image 2" in html
    plain = [np.asarray(Image.open(pictures / name).convert("RGB").resize((560, 420))) for name in ("0.png", "1.png")]
    assert all((np.asarray(a) != b).any() for a, b in zip(answer.pictures(), plain, strict=True))
    assert len(answer.draw(tmp_path / "a.png")) == 2
    shown = type(answer)("<script>", measures={"EF": 58.44}, marks=(Mark(),))._repr_html_()
    assert "&lt;script&gt;" in shown and "<td>EF</td><td>58.4 %</td>" in shown


def test_a_model_of_views_measures_them(measuring: LoadedModel, pictures: Path) -> None:
    """Reference: the head of the model on the pixels of its processor."""
    model = measuring
    answer = model.measure({"ES": pictures / "1.png", "ED": pictures / "0.png"})
    images = [Image.open(pictures / name).convert("RGB") for name in ("0.png", "1.png")]
    pixels = model.variant().encoder.processor(images=images, return_tensors="pt")["pixel_values"][None]  # type: ignore[operator]
    with torch.no_grad():
        expected = model.model.eval()(pixel_values=pixels).heads["measures"].item()
    assert answer.measures == {"EF": pytest.approx(expected, rel=1e-5)} and answer.text.startswith("EF ")
    assert f"<td>{expected:.1f} %</td>" in answer._repr_html_()
    with pytest.raises(DataError, match="the view 'ES' is absent"):
        model.measure({"ED": pictures / "0.png"})


@pytest.mark.parametrize(
    "text, n, top_logprobs, reason",
    [
        ("Is there an effusion?", 1, None, "answers no questions: leave the text out"),
        ("", 2, None, "leave n and logprobs out"),
        ("", 1, 0, "leave n and logprobs out"),
    ],
)
def test_a_model_of_measures_refuses_what_it_would_ignore(
    measuring: LoadedModel, pictures: Path, text: str, n: int, top_logprobs: int | None, reason: str
) -> None:
    images = [Image.open(pictures / name).convert("RGB") for name in ("0.png", "1.png")]
    sample = Sample([Turn("user", text)], images, ["ED", "ES"])
    pieces: list[str] = []
    options = GenerationOptions(top_logprobs=top_logprobs)
    with pytest.raises(DataError, match=reason):
        measuring.prepare(Request(sample, options, n=n))
    request = Request(replace(sample, turns=[Turn("user", "")]), on_text=lambda _, piece: pieces.append(piece))
    ((answer,),) = measuring.answer_all([request])
    assert "".join(pieces) == answer.text, "a stream has the text of the whole answer"


def test_adapters_of_unlike_bases_are_refused(
    generating_base: Path, generating_adapter: Path, tiny_medgemma: Path, tmp_path: Path
) -> None:
    other = write_tiny_adapter(tiny_medgemma, tmp_path / "other")
    with pytest.raises(ConfigError, match="the adapters 'a' and 'b' cannot share a base: model_name_or_path is"):
        load(adapters={"a": generating_adapter, "b": other})
    with pytest.raises(ConfigError, match="--adapter .*absent does not exist"):
        load(tmp_path / "absent")
    with pytest.raises(ConfigError, match="no model is named"):
        load()


def test_the_package_is_imported_without_heavy_packages() -> None:
    program = "import sys, mllm; assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
