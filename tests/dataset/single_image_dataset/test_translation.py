import json

import pytest

from mllm.dataset.single_image_dataset.translation import TranslationDataset
from mllm.errors import DataError
from mllm.structures import Turn

EXPECTED = [Turn("user", 'He said "hi".'), Turn("assistant", "Il a dit « salut ».")]


def test_mtnt_files_have_no_header(tmp_path):
    path = tmp_path / "train.en-fr.tsv"
    path.write_text('0\tHe said "hi".\tIl a dit « salut ».\n1\tNo.\tNon.\n', encoding="utf-8")
    data = TranslationDataset(path)
    assert len(data) == 2 and data.sample(0).turns == EXPECTED
    assert data.sample(1).source.endswith("line 2") and data.group(1) is None


def test_a_header_with_other_names_is_no_sentence(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("id\tenglish\tfrench\n0\tNo.\tNon.\n")
    message = r"rows.tsv, line 1: is a header \(id, english, french\), but a file of MTNT has none: set source and"
    with pytest.raises(DataError, match=message):
        TranslationDataset(path)
    assert len(TranslationDataset(path, source="english", target="french")) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.tsv"])
def test_columns_are_named(tmp_path, name):
    path = tmp_path / name
    if name.endswith("tsv"):
        path.write_text('en\tfr\nHe said "hi".\tIl a dit « salut ».\n', encoding="utf-8")
    else:
        path.write_text(json.dumps({"translation": {"en": EXPECTED[0].text, "fr": EXPECTED[1].text}}) + "\n")
    assert TranslationDataset(path, source="en", target="fr").sample(0).turns == EXPECTED


def test_an_instruction_precedes_the_sentence(tmp_path):
    (tmp_path / "a.tsv").write_text("0\tNo.\tNon.\n")
    sample = TranslationDataset(tmp_path / "a.tsv", instruction="Translate to French:").sample(0)
    assert sample.turns[0].text == "Translate to French:\nNo."


def test_a_missing_text_raises_with_its_location(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"src": "No."}\n{"src": " ", "dst": "Non."}\n')
    data = TranslationDataset(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a.jsonl, line 1: field 'dst' is missing; known are src"):
        data.sample(0)
    with pytest.raises(DataError, match=r"a.jsonl, line 2: field 'src' is empty"):
        data.sample(1)


class Upper(TranslationDataset):
    """A class of a user that reads a field without a check."""

    def turns_of(self, row):
        return [Turn(turn.role, row["style"].join(turn.text)) for turn in super().turns_of(row)]


def test_an_unexpected_exception_of_a_class_of_texts_names_the_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"src": "No.", "dst": "Non.", "style": 5}\n')
    data = Upper(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a.jsonl, line 1: it cannot be used \(AttributeError") as info:
        data.inspect(0)
    assert info.value.reason.startswith("it cannot be used (AttributeError in ")
