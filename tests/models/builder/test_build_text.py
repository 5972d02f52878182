"""Text models: selection by config, supervision of answers only, the loss of the model, and ends of answers."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoConfig

from mllm.config.hardware import detect
from mllm.config.schema import ModelArgs
from mllm.engine.learner import Learner
from mllm.engine.preflight import preflight
from mllm.errors import ConfigError, DataError
from mllm.family import FAMILIES
from mllm.models.builder.builder import load_encoder, load_pretrained
from mllm.models.encoding.text_processor import load_text_processor
from mllm.models.generation.generate import generate
from mllm.objectives.text import NextToken
from mllm.structures import LogicalBatch, Sample, Turn
from mllm.tiny.checkpoints import write_tiny

PAIRS = [("The heart is normal.", "Das Herz."), ("The liver is large.", "Die Leber."), ("No kidney.", "Keine Niere.")]
SAMPLES = [Sample([Turn("user", question), Turn("assistant", answer)]) for question, answer in PAIRS]
TYPES = {"gemma3n": "causal-lm", "vaultgemma": "causal-lm", "t5gemma": "seq2seq"}
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{{ turn['role'] ~ ':\n' ~ turn['content'] }}"
    "{{ eos_token if turn['role'] == 'assistant' else '\n' }}{% endfor %}{{ 'assistant:\n' if add_generation_prompt }}"
)


@pytest.fixture(scope="module", params=["gemma3n", "vaultgemma", "t5gemma"])
def args(request, tmp_path_factory):
    folder = write_tiny(request.param, tmp_path_factory.mktemp(request.param) / "model")
    template = TEMPLATE if request.param == "vaultgemma" else None  # the published checkpoint has none
    return ModelArgs(
        type=TYPES[request.param], model_name_or_path=str(folder), lora_r=8, max_length=64, chat_template=template
    )


def test_training_memorizes_pairs_and_generation_ends(args):
    bundle = load_pretrained(args, detect())
    batch = bundle.encoder.pad([bundle.encoder.encode(sample) for sample in SAMPLES])
    learner = Learner(bundle.model, {"next_token": NextToken()})
    preflight(learner, LogicalBatch([batch], 3, 1, 1), Accelerator(cpu=True))
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(120):
        loss = learner(batch.student, batch.targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.12:
            break
    actual = generate(bundle, SAMPLES, max_new_tokens=20, progress=False)
    assert [answer.text for answer in actual] == [answer for _, answer in PAIRS]
    assert all(answer.tokens < 20 for answer in actual)
    # The trained end token ends each answer, also with `generate` of transformers and the settings of the checkpoint.
    model, encoder = bundle.model.pretrained, bundle.encoder
    assert encoder.turn_end == ("<eos>" if "vaultgemma" in args.model_name_or_path else "<end_of_turn>")
    for question, answer in PAIRS:
        inputs = encoder.pad([encoder.prompt(Sample([Turn("user", question)]))]).student
        written = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
        begin = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        assert encoder.tokenizer.decode(written[begin:]) == answer + encoder.turn_end


def test_t5gemma_starts_at_bos_and_its_labels_are_the_target(tmp_path):
    folder = write_tiny("t5gemma", tmp_path / "model")
    bundle = load_pretrained(ModelArgs(type="seq2seq", model_name_or_path=str(folder), max_length=64), detect())
    tokenizer, model = bundle.encoder.tokenizer, bundle.model.pretrained
    for sample, (question, answer) in zip(SAMPLES, PAIRS, strict=True):
        batch = bundle.encoder.pad([bundle.encoder.encode(sample)])
        ids, labels = batch.student["decoder_input_ids"][0], batch.targets["labels"][0]
        source = f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
        assert tokenizer.decode(batch.student["input_ids"][0]) == source
        assert tokenizer.decode(labels[1:]) == f"{answer}<end_of_turn>"
        assert ids[0] == tokenizer.bos_token_id and torch.equal(ids[1:], labels[1:])
        # transformers shifts the labels to the right from `<bos>`, and computes the same loss.
        inputs = {key: batch.student[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            theirs = model(**inputs, labels=labels[None, 1:]).loss
            ours = Learner(bundle.model, {"next_token": NextToken()})(batch.student, batch.targets)["loss"]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_sample_does_not_depend_on_its_batch(args):
    bundle = load_pretrained(args, detect())
    objective, encoded = NextToken(), [bundle.encoder.encode(sample) for sample in SAMPLES]
    learner = Learner(bundle.model, {"next_token": objective})
    together = bundle.encoder.pad(encoded)
    with torch.no_grad():
        whole = learner(together.student, together.targets)["loss"] * objective.count(together.targets).sum()
        alone = [bundle.encoder.pad([one]) for one in encoded]
        parts = [learner(one.student, one.targets)["loss"] * objective.count(one.targets).sum() for one in alone]
    assert torch.allclose(whole, sum(parts), rtol=1e-5)


def test_only_attention_and_mlp_of_the_language_model_are_adapted(args):
    bundle = load_pretrained(args, detect())
    adapted = {
        name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name, _ in bundle.model.named_parameters() if "lora_" in name
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_4_bits_do_not_quantize_unsupported_modules(args):
    bundle = load_pretrained(replace(args, load_in_4bit=True), detect())
    batch = bundle.encoder.pad([bundle.encoder.encode(sample) for sample in SAMPLES])
    Learner(bundle.model, {"next_token": NextToken()})(batch.student, batch.targets)["loss"].backward()
    assert any(p.grad is not None and p.grad.any() for p in bundle.model.parameters())


def test_images_and_other_models_are_refused(args, tiny_llava):
    from PIL import Image

    bundle = load_pretrained(args, detect())
    with pytest.raises(DataError, match="has images"):
        bundle.encoder.encode(replace(SAMPLES[0], images=[Image.new("RGB", (9, 9))]))
    with pytest.raises(ConfigError, match="is a 'llava' model"):
        load_pretrained(replace(args, model_name_or_path=str(tiny_llava)), detect())


@pytest.mark.parametrize(
    ("type", "architecture", "message"),
    [
        (
            "causal-lm",
            "mllama",
            "the Auto classes do not load for a 'mllama' model: use type='image-text', which also trains on texts",
        ),
        ("causal-lm", "mllama_text_model", "a 'mllama_text_model' model: no type loads this architecture"),
        ("causal-lm", "qwen3_vl", "a 'qwen3_vl' model: use type='image-text'"),
        ("causal-lm", "whisper", "a 'whisper' model, which reads or writes sound"),
        ("seq2seq", "granite_speech", "a 'granite_speech' model, which reads or writes sound"),
        ("seq2seq", "llama", "a 'llama' model: use type='causal-lm'"),
    ],
)
def test_architectures_that_a_type_does_not_train_are_refused_without_weights(type, architecture, message, tmp_path):
    AutoConfig.for_model(architecture).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=message):
        FAMILIES.find(type).skeleton(ModelArgs(type=type, model_name_or_path=str(tmp_path)))


@pytest.mark.parametrize("family", ["vaultgemma", "t5gemma"])
def test_a_chat_template_of_the_config_replaces_that_of_the_checkpoint(family, tmp_path):
    folder = write_tiny(family, tmp_path / "model")
    model_args = ModelArgs(type=TYPES[family], model_name_or_path=str(folder), max_length=64, chat_template=TEMPLATE)
    for encoder in (load_pretrained(model_args, detect()).encoder, load_encoder(model_args)):
        ids = encoder.prompt(SAMPLES[0]).student["input_ids"]
        assert encoder.tokenizer.decode(ids, skip_special_tokens=True) == f"user:\n{PAIRS[0][0]}\nassistant:\n"
        assert encoder.turn_end == "<eos>"
        encoder.processor.save_pretrained(tmp_path / "exported")
        assert load_text_processor(str(tmp_path / "exported")).chat_template == TEMPLATE


def test_an_unusable_chat_template_is_refused_with_a_fix(tmp_path):
    args = ModelArgs(type="causal-lm", model_name_or_path=str(write_tiny("vaultgemma", tmp_path / "model")))
    with pytest.raises(ConfigError, match="no chat template; .* or set model_args.chat_template"):
        load_encoder(args)
    with pytest.raises(ConfigError, match="the chat template cannot be used: .*unexpected"):
        load_encoder(replace(args, chat_template="{% for turn in messages"))
