"""Words and numbers that all echocardiograms share."""

import math

import pytest

from mllm.dataset.echo.cine import conversation, counted, drawn, known_number
from mllm.errors import DataError


def test_the_words_name_what_is_known_with_units():
    measures = {"EF": 58.44, "EDV": math.nan, "ESV": 50.0}
    user, assistant = conversation(["ED", "ES"], measures)
    assert user.text == "Echocardiogram: <image> end diastole; <image> end systole. Give EF (%), ESV (mL)."
    assert assistant.text == "EF 58.4 %, ESV 50.0 mL."
    user, _ = conversation(["4CH ED", "2CH ES"], measures)
    assert "<image> 4CH, end diastole; <image> 2CH, end systole" in user.text


@pytest.mark.parametrize(("value", "number"), [("58.4", 58.4), (3, 3.0), (" 7 ", 7.0)])
def test_known_numbers(value, number):
    assert known_number(value, "EF") == number


@pytest.mark.parametrize("value", [None, "", " ", "nan", "NaN", "inf", 0, "-3", math.nan])
def test_unknown_numbers(value):
    assert math.isnan(known_number(value, "EF"))


def test_what_is_no_number_is_refused():
    with pytest.raises(DataError, match="field 'EF' is no number: 'fine'"):
        known_number("fine", "EF")


def test_drawing_is_without_replacement_in_order():
    assert drawn(5, None, 0) == drawn(5, 9, 0) == [0, 1, 2, 3, 4]
    some = drawn(100, 10, 3)
    assert some == sorted(set(some)) == drawn(100, 10, 3) != drawn(100, 10, 4)
    assert counted({"a": 2, "b": 0, "c": 1000}) == "2 a, 1,000 c"
