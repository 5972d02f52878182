"""Tests of empty values, texts and patients of rows."""

from __future__ import annotations

import csv
import math

import pytest

from mllm.dataset.tables.values import (
    choose_answer,
    is_empty,
    loose_form,
    number_in,
    patient_columns,
    patient_of,
    text_of,
)
from mllm.errors import DataError


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", " \t\n", "\u00a0", "\u200b", "\ufeff ", math.nan, "nan", " NaN ", "<NA>", "NaT", [], {}, ()),
        *("#N/A", "#REF!", "#DIV/0!", "\\N"),  # errors of Excel, and the NULL of MySQL
        *("NULL", "null", " Null ", "(null)", "NA", "N/A", "n/a"),  # databases, JSON, R and people
    ],
)
def test_missing_values_of_every_kind_are_empty(value):
    assert is_empty(value)
    assert patient_of(value, "patient") is None
    with pytest.raises(DataError, match="field 'answer' is empty"):
        text_of(value, "answer")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("no", "no"),
        (" a ", " a "),
        (0, "0"),
        (0.5, "0.5"),
        (True, "true"),
        ("None", "None"),
        ("none", "none"),
        ("unknown", "unknown"),
        ("na", "na"),  # a word in Portuguese
        ("Na", "Na"),  # sodium
        ("null and void", "null and void"),
        ("é", "é"),
        (10**400, f"1{'0' * 400}"),
    ],
)
def test_texts_and_numbers_are_texts(value, text):
    assert not is_empty(value)
    assert text_of(value, "answer") == text


@pytest.mark.parametrize("value", [True, "1_000", "1,5", "58%", None, "", [1], 10**400])
def test_other_values_are_no_numbers(value):
    assert math.isnan(number_in(value))
    assert [number_in(value) for value in (2, 2.5, " 3 ", "-1e3")] == [2, 2.5, 3, -1000]


def test_the_message_about_a_text_for_a_missing_value_says_so():
    with pytest.raises(DataError, match="field 'answer' is empty: its text stands for a missing value, as NULL, NA"):
        text_of("NULL", "answer")
    with pytest.raises(DataError, match="field 'answer' is empty$"):
        text_of(" ", "answer")


@pytest.mark.parametrize("value", [{"a": 1}, ["a"], math.inf, b"a"])
def test_other_values_are_not_texts(value):
    with pytest.raises(DataError, match="field 'answer' is not a text"):
        text_of(value, "answer")


def test_half_of_a_surrogate_pair_is_refused_with_its_position():
    with pytest.raises(DataError, match=r"field 'answer' has half of a surrogate pair \(U\+D83D\) at character 3"):
        text_of("a \ud83d", "answer")


def test_a_nul_character_is_refused_with_its_position():
    for function in (text_of, patient_of):
        with pytest.raises(DataError, match=r"field 'answer' has a NUL character at character 3: remove it"):
            function("no\0", "answer")


def test_one_of_several_answers_is_chosen():
    answers = ["no", "yes", math.nan, "yes", "no", "yes"]
    assert choose_answer(answers, "first", "answer") == "no"
    assert choose_answer(answers, "majority", "answer") == "yes"
    assert choose_answer([2, 1, 1, 2], "majority", "answer") == "2"
    with pytest.raises(
        DataError, match="has 5 answers, but only one can be learned: set choose_answer='majority' or 'first'"
    ):
        choose_answer(answers, None, "answer")
    with pytest.raises(DataError, match="field 'answer' is empty"):
        choose_answer([None, " "], "first", "answer")


@pytest.mark.parametrize("value", [17, 17.0, "17", "17.0", " 17 ", "17.00\t"])
def test_all_forms_of_a_number_are_one_patient(value):
    assert patient_of(value, "patient") == "17"


def test_ids_written_by_pandas_are_those_of_the_other_split(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"patient": [17, None]}).to_csv(tmp_path / "a.csv", index=False)
    pandas.DataFrame({"patient": [17, 18]}).to_csv(tmp_path / "b.csv", index=False)
    read = [[row["patient"] for row in csv.DictReader((tmp_path / name).open())] for name in ("a.csv", "b.csv")]
    assert read == [["17.0", ""], ["17", "18"]]
    assert [[patient_of(value, "patient") for value in values] for values in read] == [["17", None], ["17", "18"]]


@pytest.mark.parametrize(
    ("value", "patient"),
    [
        ("A1 ", "A1"),
        ("Ana\u0301", "An\u00e1"),
        ("a  b", "a b"),
        ("\ufeffA1\u200b", "A1"),
        ("1.5", "1.5"),
        ("v2.0", "v2.0"),
        (0, "0"),
        ("007", "007"),
    ],
)
def test_texts_are_patients_without_surrounding_white_space(value, patient):
    assert patient_of(value, "patient") == patient


@pytest.mark.parametrize(
    "value", ["None", "null", "N/A", "NA", "unknown", " - ", "?", "Anonymized", "missing", "Not  available"]
)
def test_texts_in_place_of_an_id_are_no_patient(value):
    assert patient_of(value, "patient") is None


@pytest.mark.parametrize("value", [1.5, 2.0**60, True, ["a"], {"id": 1}])
def test_other_values_are_not_patients_and_the_message_does_not_name_them(value):
    with pytest.raises(DataError, match="field 'patient' must be the id of a patient") as excinfo:
        patient_of(value, "patient")
    assert str(value) not in str(excinfo.value).removesuffix(type(value).__name__)


def test_columns_that_may_contain_the_patient_are_found():
    found = ["Patient ID", "subject_id", "PatientID", "mrn", "participant_id", "person_id", "PtID", "pat_id"]
    others = ["Image Index", "Patient Age", "Patient Gender", "subject", "participant_age", "person", "pt", "id"]
    assert patient_columns([*found, *others]) == found


def test_wide_digits_and_letters_are_another_form_of_an_id():
    assert loose_form("\uff11\uff17") == loose_form("17") == loose_form("017")
    assert loose_form("\uff21-1") == loose_form("a-1") != loose_form("a-2")


def test_zeros_before_the_last_number_are_another_form_of_an_id():
    assert loose_form("P-007") == loose_form("p 7") == loose_form("P_7") == loose_form("P7") != loose_form("P-70")
    assert loose_form("1-12") != loose_form("11-2") and loose_form("A1-12") != loose_form("A11-2")
    assert loose_form("P007") == loose_form("p7") == loose_form("P0007") != loose_form("P70")
    assert loose_form("site-01/007") == loose_form("site-01/7") != loose_form("site-1/7")
    assert loose_form("000") == loose_form("0") != loose_form("00a")


def test_the_rounded_id_of_a_patient_that_excel_writes_is_refused():
    with pytest.raises(DataError, match=r"field 'patient' must be .*such as 1\.2E\+11\): write the column as text"):
        patient_of("1.23457E+11", "patient")
    assert patient_of("1E5", "patient") == "1E5"
