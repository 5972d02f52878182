"""Literal texts of errors: the words of a message stay, and values become `…`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from PIL import Image

from mllm.dataset.readers import read_images
from mllm.dataset.single_image_dataset.grounding import parse_box
from mllm.dataset.single_image_dataset.pointing import parse_point
from mllm.dataset.single_image_dataset.text_qa import TextQADataset
from mllm.errors import DataError, with_location
from mllm.literal_text import PACKAGE, literal_text

NAME = "Jane Doe"


def error_of(function, *arguments) -> BaseException:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    return caught.value


def test_values_of_a_message_are_left_out():
    error = error_of(parse_point, Image.new("RGB", (8, 8)), NAME)
    assert NAME in str(error)
    assert literal_text(error) == "field '…' must contain two numbers, not …"


def test_the_cause_of_an_error_with_a_location_is_used():
    def locate() -> None:
        try:
            parse_point(Image.new("RGB", (8, 8)), NAME)
        except DataError as error:
            raise with_location(error, f"{NAME}.jsonl, line 3") from error

    assert literal_text(error_of(locate)) == "field '…' must contain two numbers, not …"


def test_an_error_about_a_row_says_what_is_wrong_without_its_values(tmp_path):
    table = tmp_path / "rows.jsonl"
    table.write_text(f'{{"messages": [{{"role": "{NAME}", "content": "a"}}]}}\n')
    error = error_of(TextQADataset(table).sample, 0)
    assert NAME in str(error)
    assert literal_text(error) == "turn … of '…': unknown role '…'…"


def test_an_error_of_the_guarded_process_has_the_text_as_its_reason(tmp_path):
    video = tmp_path / f"{NAME}.avi"
    video.write_bytes(NAME.encode() * 50)
    error = error_of(read_images, video)
    assert isinstance(error, DataError) and error.reason is not None
    assert NAME not in error.reason and "is not a video or is damaged" in error.reason


def test_errors_of_other_code_have_none():
    assert literal_text(error_of(raise_here)) is None
    assert literal_text(DataError("never raised")) is None
    box = error_of(parse_box, (8, 8), [5, 5, 1, 1])
    assert isinstance(box, DataError) and box.reason is not None


def raise_here() -> None:
    raise DataError(f"{NAME} is wrong")


def test_every_error_about_data_has_a_reason_or_a_literal_text():
    """A private run then says what is wrong with a row. Errors that were found earlier are stored as texts."""
    silent = []
    for path in sorted(PACKAGE.glob("dataset/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "DataError" and not node.keywords:
                message, *reason = node.args
                if not reason and not isinstance(message, ast.Constant | ast.JoinedStr):
                    silent.append(f"{path.relative_to(PACKAGE)}: {ast.unparse(message)}")
    assert [text for text in silent if not text.endswith(("[ERROR]", ".error"))] == []


def test_the_package_is_this_one():
    assert Path(__file__).parents[1] / "mllm" == PACKAGE
