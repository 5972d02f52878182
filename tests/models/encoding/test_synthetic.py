"""Artificial samples: the first has the maximum length, each next one half of it, and their source says artificial."""

import pytest
from transformers import SiglipImageProcessor

from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.models.builder.builder import load_pretrained
from mllm.models.encoding.synthetic import WORDS, synthetic_samples
from mllm.models.encoding.views import ViewEncoder
from mllm.tiny.checkpoints import write_tiny

CPU = Hardware("cpu", "x86_64", None, 0, 0, 8 << 30, 2)
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'user' %}{{ 'Question:\n' ~ turn['content'] }}"
    "{% else %}{{ 'Response:\n' ~ turn['content'] ~ eos_token }}{% endif %}{% endfor %}"
)
TYPES = {
    "vaultgemma": dict(type="causal-lm", chat_template=TEMPLATE),
    "t5gemma": dict(type="seq2seq"),
    "medgemma": dict(type="medgemma", image_size=112, image_token_len=16),
}


@pytest.mark.parametrize("reads_images", [True, False])
def test_synthetic_samples_are_named_synthetic(reads_images):
    samples = synthetic_samples(5, 100, reads_images)
    assert [len(sample.turns[1].text.split()) for sample in samples] == [100, 50, 25, 12, 6]
    assert [len(sample.images) for sample in samples] == [int(reads_images and number % 2 == 0) for number in range(5)]
    for number, sample in enumerate(samples, start=1):
        assert f"Synthetic sample {number}" in sample.turns[0].text
        assert set(sample.turns[1].text.split()) <= set(WORDS)
    # The check of gradients uses the last sample, which must reach a vision tower.
    assert [len(sample.images) for sample in synthetic_samples(2, 9, reads_images)] == [0, int(reads_images)]


def test_synthetic_samples_are_deterministic():
    first, second = synthetic_samples(3, 40, True), synthetic_samples(3, 40, True)
    assert [sample.turns for sample in first] == [sample.turns for sample in second]
    assert first[0].images[0].tobytes() == second[0].images[0].tobytes()


@pytest.mark.parametrize("family", TYPES)
def test_the_longest_fills_the_maximal_length(family, tmp_path):
    checkpoint = write_tiny(family, tmp_path / family)
    args = ModelArgs(model_name_or_path=str(checkpoint), max_length=128, lora_r=4, **TYPES[family])
    encoder = load_pretrained(args, CPU).encoder
    samples = encoder.synthetic(3)
    assert any(sample.images for sample in samples) == (family == "medgemma")
    lengths = [len(encoder.encode(sample)) for sample in samples]
    assert lengths[0] == 128 + (family == "t5gemma"), "the start token of the decoder does not count"
    assert lengths == sorted(lengths, reverse=True)


def test_views_are_noise_that_the_encoder_of_views_reads():
    encoder = ViewEncoder(SiglipImageProcessor(), views=["ED", "ES"], measures=["EF", "EDV", "ESV"])
    encoded = [encoder.encode(sample) for sample in encoder.synthetic(3)]
    assert [one.targets["measures"].tolist() for one in encoded] == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    pixels = [tensor for one in encoded for tensor in one.student["pixel_values"]]
    assert len(pixels) == 6 and all(not a.equal(b) for a in pixels for b in pixels if a is not b)
