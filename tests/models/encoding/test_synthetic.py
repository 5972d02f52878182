"""Made-up samples fill the length, halve, and say what they are."""

import pytest

from mllm.models.encoding.synthetic import WORDS, synthetic_samples, synthetic_views


@pytest.mark.parametrize("reads_images", [True, False])
def test_they_say_what_they_are(reads_images):
    made = synthetic_samples(5, 100, reads_images)
    assert [len(sample.turns[1].text.split()) for sample in made] == [100, 50, 25, 12, 6]
    assert [len(sample.images) for sample in made] == [int(reads_images and number % 2 == 0) for number in range(5)]
    for number, sample in enumerate(made, start=1):
        assert f"Synthetic sample {number}" in sample.turns[0].text
        assert set(sample.turns[1].text.split()) <= set(WORDS)
    # The check of gradients looks at the last one, which must reach a vision tower.
    assert [len(sample.images) for sample in synthetic_samples(2, 9, reads_images)] == [0, int(reads_images)]


def test_they_are_the_same_in_every_process():
    first, second = synthetic_samples(3, 40, True), synthetic_samples(3, 40, True)
    assert [sample.turns for sample in first] == [sample.turns for sample in second]
    assert first[0].images[0].tobytes() == second[0].images[0].tobytes()


@pytest.mark.parametrize("family", ["vaultgemma", "t5gemma", "medgemma"])
def test_the_longest_fills_what_a_sample_may_have(make_private, family):
    parts = make_private(family, max_length=128)
    made = synthetic_samples(3, 128, reads_images=family == "medgemma")
    lengths = [len(parts.bundle.encoder.encode(sample)) for sample in made]
    assert lengths[0] == 128 + (family == "t5gemma"), "the decoder's start does not count"
    assert lengths == sorted(lengths, reverse=True)


def test_views_are_noise_that_the_encoder_of_views_reads(make_seeing):
    encoder = make_seeing().bundle.encoder
    made = synthetic_views(3, encoder.views, encoder.measures)
    encoded = [encoder.encode(sample) for sample in made]
    assert [one.targets["measures"].tolist() for one in encoded] == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    pixels = [tensor for one in encoded for tensor in one.student["pixel_values"]]
    assert len(pixels) == 6 and all(not a.equal(b) for a in pixels for b in pixels if a is not b)
