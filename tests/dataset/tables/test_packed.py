"""Rows in compressed blocks are the sequence of the rows that were appended, in a small part of their memory."""

import gc
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm.dataset.public.official import Groups, Ids
from mllm.dataset.tables.packed import PackedRows

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
ROWS = st.lists(st.dictionaries(st.text(max_size=3), VALUES | st.lists(VALUES, max_size=3), max_size=4), max_size=9)


@given(ROWS, st.integers(1, 40))
def test_packed_rows_are_a_sequence(rows, times):
    rows = rows * times
    packed = PackedRows(rows)
    assert len(packed) == len(rows) and list(packed) == rows and packed[3:-2] == rows[3:-2]
    for index in (*range(-len(rows), 0, 7), *range(0, len(rows), 5)):
        assert packed[index] == rows[index]
    packed.append({"last": 1})
    assert packed[-1] == {"last": 1} and packed[: len(rows)] == rows
    assert list(pickle.loads(pickle.dumps(packed))) == [*rows, {"last": 1}]
    with pytest.raises(IndexError):
        packed[len(rows) + 1]


def test_a_change_of_a_row_that_was_read_is_not_kept():
    rows = [{"names": [str(number)]} for number in range(70)]
    packed = PackedRows(rows)
    for index in (0, 69):
        packed[index]["names"].append("changed")
        next(iter(packed))["names"].clear()
        rows[index]["names"].append("later")
        assert packed[index] == {"names": [str(index)]} and packed[0] == {"names": ["0"]}


def test_a_row_takes_some_tens_of_bytes():
    gc.collect()
    tracemalloc.start()
    packed = PackedRows(
        {"image": f"train/patient{n // 4:05}/view{n % 4}.jpg", "label": str(n % 3)} for n in range(9000)
    )
    gc.collect()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 30 * len(packed) and peak < 600_000, "zlib and one block"


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.booleans())))
def test_the_error_of_a_repeated_id_names_its_first_row(rows):
    ids, number, expected, first = Ids("name"), 0, {}, {}
    for index, (name, is_used) in enumerate(rows):
        ids.add(name, index, number if is_used else -1)
        if first.setdefault(name, index) != index and is_used:
            expected[number] = f"column 'name' has '{name}', as line {first[name]} has: keep one of them"
        number += is_used
    assert ids.errors(lambda index: rows[index][0], lambda index: f"line {index}") == expected


@given(st.lists(st.sampled_from("abcde")))
def test_rows_are_grouped_in_the_order_of_their_first_rows(keys):
    groups, expected = Groups(), {}
    for index, key in enumerate(keys):
        expected.setdefault(key, []).append(index)
        groups.add(key, index)
    assert [groups.number_of(place) for place in range(len(keys))] == [list(expected).index(key) for key in keys]
    assert list(groups) == list(expected.values()) and len(groups) == len(expected)
    assert groups.find("z") is None and all(groups[groups.find(key)] == expected[key] for key in keys)
