"""Views are selected by name, never by order."""

import math

import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessor

from mllm.errors import DataError
from mllm.models.encoding.views import ViewEncoder
from mllm.structures import Sample, Turn


@pytest.fixture
def encoder() -> ViewEncoder:
    processor = SiglipImageProcessor(size={"height": 4, "width": 4}, do_normalize=False, do_convert_rgb=True)
    return ViewEncoder(processor, views=("ED", "ES"), measures=("EF", "EDV"), tokens=9)


def _sample(views: list[str], grays: list[int], **more) -> Sample:
    images = [Image.new("RGB", (8, 8), (gray,) * 3) for gray in grays]
    return Sample([Turn("user", "")], images=images, views=views, **more)


def test_the_order_of_a_sample_does_not_matter(encoder: ViewEncoder):
    one = encoder.encode(_sample(["ED", "ES"], [10, 200])).student["pixel_values"]
    other = encoder.encode(_sample(["ES", "A4C", "ED"], [200, 90, 10])).student["pixel_values"]
    assert one.shape == (2, 3, 4, 4) and torch.equal(one, other)
    assert one[0].mean().item() == pytest.approx(10 / 255) and one[1].mean().item() == pytest.approx(200 / 255)


def test_a_view_that_is_absent_is_named(encoder: ViewEncoder):
    with pytest.raises(DataError, match=r"a.avi: the view 'ES' is absent \(there are ED, A4C\)"):
        encoder.encode(_sample(["ED", "A4C"], [0, 0], source="a.avi"))
    with pytest.raises(DataError, match=r"a sample: the view 'ED' is absent \(there are no named views\)"):
        encoder.encode(_sample([], [0, 0]))


def test_unknown_measures_are_finite_and_marked(encoder: ViewEncoder):
    targets = encoder.encode(_sample(["ED", "ES"], [0, 0], measures={"EF": math.nan, "EDV": 120.5, "ESV": 50})).targets
    assert targets["measures"].tolist() == [0.0, 120.5]
    assert targets["measures_known"].tolist() == [False, True]


def test_a_shuffled_batch_keeps_each_patients_views_together(encoder: ViewEncoder):
    """GEMMA 3NCORE interleaved ES and ED and split the batch in halves, which paired views of different patients."""
    samples = [encoder.encode(_sample(["ED", "ES"], [10 * i, 10 * i + 100])) for i in (4, 1, 3, 0)]
    pixels = encoder.pad(samples).student["pixel_values"]
    assert pixels.shape == (4, 2, 3, 4, 4)
    grays = (pixels.mean(dim=(2, 3, 4)) * 255).round().int()
    assert (grays[:, 1] - grays[:, 0]).tolist() == [100] * 4
    assert grays[:, 0].tolist() == [40, 10, 30, 0]


def test_a_prompt_has_no_known_targets(encoder: ViewEncoder):
    prompt = encoder.prompt(_sample(["ED", "ES"], [0, 0], measures={"EF": 50.0}))
    assert not prompt.targets["measures_known"].any()
    assert len(prompt) == 18


def test_answers_have_units_and_references_a_patient(encoder: ViewEncoder):
    answer = encoder.answer({"EF": 58.44, "EDV": 120.06, "ESV": math.nan})
    assert answer.text == "EF 58.4 %, EDV 120.1 mL"
    reference = encoder.reference(_sample(["ED", "ES"], [0, 0], measures={"EF": 50.0}, group="p1"))
    assert reference.group == "p1" and reference.measures["EF"] == 50.0 and math.isnan(reference.measures["EDV"])
