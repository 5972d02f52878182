"""Tests of the text and the numbers of echocardiograms."""

import math

import pytest

from mllm.dataset.echo.cine import conversation, format_counts, known_number
from mllm.errors import DataError


def test_the_conversation_has_the_known_measures_with_units():
    measures = {"EF": 58.44, "EDV": math.nan, "ESV": 50.0}
    user, assistant = conversation(["ED", "ES"], measures)
    assert user.text == "Echocardiogram: <image> end diastole; <image> end systole. Give EF (%), ESV (mL)."
    assert assistant.text == "EF 58.4 %, ESV 50.0 mL."
    user, _ = conversation(["4CH ED", "2CH ES"], measures)
    assert "<image> 4CH, end diastole; <image> 2CH, end systole" in user.text


@pytest.mark.parametrize(("value", "number"), [("58.4", 58.4), (3, 3.0), (" 7 ", 7.0)])
def test_numbers_are_parsed(value, number):
    assert known_number(value, "EF") == number


@pytest.mark.parametrize("value", [None, "", " ", "nan", "NaN", "inf", 0, "-3", math.nan])
def test_invalid_numbers_are_unknown(value):
    assert math.isnan(known_number(value, "EF"))


def test_a_value_that_is_not_a_number_is_refused():
    with pytest.raises(DataError, match="field 'EF' must be a number, not 'fine'"):
        known_number("fine", "EF")


def test_counts_above_0_are_formatted():
    assert format_counts({"a": 2, "b": 0, "c": 1000}) == "2 a, 1,000 c"
