import json
from pathlib import Path

import pytest

from mllm.dataset.builder import build_dataset
from mllm.dataset.single_image_dataset.text_qa import TextQADataset
from mllm.errors import ConfigError, DataError
from mllm.structures import Turn

EXPECTED_ANSWER = {"role": "assistant", "content": "Because."}
EXPECTED = [Turn("user", "Why?"), Turn("assistant", "Because.")]


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, EXPECTED_ANSWER]},
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"instruction": "Why?", "context": None, "response": "Because."},
        {"input": "Why?", "context": "", "output": "Because.", "source": "first_aid"},
        {"question": "Why?", "answer": "Because."},
        {"QUESTION": "Why?", "LONG_ANSWER": "Because."},
        {"prompt": " Why? ", "completion": "Because."},
    ],
    ids=lambda row: next(iter(row)),
)
def test_all_formats_give_equal_turns(tmp_path, row):
    sample = TextQADataset(written(tmp_path / "rows.jsonl", row)).sample(0)
    assert sample.turns == EXPECTED and sample.images == []


def test_all_turns_are_used_and_adjacent_turns_of_one_role_are_combined(tmp_path):
    turns = [("system", "Be brief."), ("human", "a"), ("human", "b"), ("gpt", "c"), ("human", "d"), ("gpt", "e")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    sample = TextQADataset(written(tmp_path / "rows.jsonl", row), system="unused").sample(0)
    assert [(turn.role, turn.text) for turn in sample.turns] == [
        ("system", "Be brief."),
        ("user", "a\nb"),
        ("assistant", "c"),
        ("user", "d"),
        ("assistant", "e"),
    ]


def test_columns_can_be_named_and_inputs_are_appended(tmp_path):
    row = {"q": "Why?", "a": "Because.", "instruction": "Answer.", "input": "Why?", "output": "So.", "patient": 7}
    path = written(tmp_path / "rows.jsonl", row)
    named = TextQADataset(path, question="q", answer="a", system="Be brief.")
    assert named.sample(0).turns == [Turn("system", "Be brief."), *EXPECTED]
    assert named.group(0) == "7"
    assert TextQADataset(path).sample(0).turns[0].text == "Answer.\n\nWhy?"


def test_a_context_is_appended_to_its_question(tmp_path):
    row = {"question": "Why?", "context": ["It rained.", "It was cold."], "answer": "Because."}
    path = written(tmp_path / "rows.jsonl", row, {**row, "context": {"a": 3}})
    prompt = "Why?\n\nIt rained.\nIt was cold."
    assert TextQADataset(path).sample(0).turns[0].text == prompt
    named = dict(question="question", answer="answer")
    assert TextQADataset(path, **named).sample(0).turns[0].text == "Why?"
    assert TextQADataset(path, **named, context="context").sample(0).turns[0].text == prompt
    with pytest.raises(DataError, match="line 2: field 'context' is not a text"):
        TextQADataset(path).sample(1)
    with pytest.raises(DataError, match="field 'contxt' is missing: did you mean 'context'"):
        TextQADataset(path, **named, context="contxt").sample(0)
    with pytest.raises(ConfigError, match="context requires question and answer"):
        TextQADataset(path, context="context")


def test_pubmedqa_is_read_in_its_published_format(shared_data):
    path = shared_data / "text" / "pubmedqa_ori_pqal.json"
    if not path.is_file():
        pytest.skip("PubMedQA's labeled questions are not beside this checkout")
    published = list(json.loads(path.read_text()).values())
    long = TextQADataset(path)
    decided = TextQADataset(path, question="QUESTION", answer="final_decision", context="CONTEXTS")
    assert len(long) == len(decided) == 1000
    for number in (0, 999):
        row = published[number]
        assert [turn.text for turn in long.sample(number).turns] == [row["QUESTION"], row["LONG_ANSWER"]]
        prompt = "\n\n".join([row["QUESTION"], "\n".join(row["CONTEXTS"])])
        assert [turn.text for turn in decided.sample(number).turns] == [prompt, row["final_decision"]]


def test_all_kinds_of_tables_give_equal_samples(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{"question": "Why?", "answer": "Because."}] * 3)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "folder"))
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(str(tmp_path / "splits"))
    table.to_csv(str(tmp_path / "rows.csv"))
    table.select([]).to_parquet(str(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match="none.parquet is empty"):
        TextQADataset(tmp_path / "none.parquet")
    for name, size, options in (
        ("rows.parquet", 3, {}),
        ("folder", 3, {}),
        ("splits", 1, {"split": "test"}),
        ("rows.csv", 3, {}),
    ):
        data = build_dataset(dict(type="TextQADataset", data_path=str(tmp_path / name), **options))
        assert len(data) == size and data.sample(0).turns == EXPECTED
    with pytest.raises(DataError, match=r"has the splits test, train: choose one by split='test'"):
        TextQADataset(tmp_path / "splits")
    with pytest.raises(DataError, match="has no split 'tset': did you mean 'test'"):
        TextQADataset(tmp_path / "splits", split="tset")


def test_filters_log_removed_rows_and_rows_keep_their_location(tmp_path, caplog):
    rows = [{"question": "Why?", "answer": answer} for answer in ("x", "Because.", "Because.", "Therefore.")]
    with caplog.at_level("INFO", logger="mllm"):
        data = TextQADataset(written(tmp_path / "rows.jsonl", *rows), filters=dict(min_characters=2, duplicates=False))
    assert "2 of 4 conversations kept; dropped: 1 too short, 1 duplicate" in caplog.text
    assert len(data) == 2 and data.describe(1).endswith("line 4")
    with pytest.raises(DataError, match="the filters remove all of its 4 rows"):
        TextQADataset(tmp_path / "rows.jsonl", filters=dict(min_characters=99))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"line 1: its fields \(text\) are not a known format"),
        ({"question": "", "answer": "b"}, "line 1: field 'question' is empty"),
        ({"question": {"a": 3}, "answer": "b"}, "line 1: field 'question' is not a text"),
        ({"messages": []}, "line 1: field 'messages' must be a list of turns"),
        ({"messages": [{"role": "user"}]}, "line 1: turn 1 of 'messages' needs 'role' and 'content'"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "unknown role 'bot'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "'messages' has no answer"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "begins with an answer"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "field 'content' is not a text"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, EXPECTED_ANSWER]},
            "turn 2 of 'messages': a system message must precede all other turns",
        ),
    ],
)
def test_an_invalid_row_raises_with_its_location(tmp_path, row, message):
    data = TextQADataset(written(tmp_path / "rows.jsonl", row))
    with pytest.raises(DataError, match=message):
        data.sample(0)


def test_question_without_answer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="set both or neither"):
        TextQADataset(written(tmp_path / "rows.jsonl", {"a": 1}), question="a")
