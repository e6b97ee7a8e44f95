"""Tests of columns that are read as labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpgan_ray.data.datasets.pictures.labels import MAX_CLASSES, missing_of, read_label
from cpgan_ray.data.datasets.pictures.listing import Column, column_of
from cpgan_ray.errors import InputError


@pytest.mark.parametrize(
    ("cells", "classes", "numbers"),
    [
        (["0", "1", "1"], (), [0, 1, 1]),
        (["-1", "1", ""], (), [0, 1, -1]),
        (["True", "false", "NA"], (), [1, 0, -1]),
        (["no", "Yes", "yes", "null"], (), [0, 1, 1, -1]),
        (["1.0", "", "0.0", "nan"], (), [1, -1, 0, -1]),
        (["1", "2", "2"], ("1", "2"), [0, 1, 1]),
        (["dog", "cat", " dog ", "N/A"], ("cat", "dog"), [1, 0, 1, -1]),
        (["10", "9", "2", "10"], ("2", "9", "10"), [2, 1, 0, 2]),
        (["b", "a", "c", "1"], ("1", "a", "b", "c"), [2, 1, 3, 0]),
        (["yes", "no", "perhaps"], ("no", "perhaps", "yes"), [2, 0, 1]),
        (["-3", "5"], ("-3", "5"), [0, 1]),
    ],
)
def test_read_label_of_two_values_or_classes_has_their_numbers(cells, classes, numbers):
    label = read_label("a", column_of(cells))
    assert label.classes == classes
    assert label.numbers.dtype == np.int8
    assert label.numbers.tolist() == numbers


def test_read_label_with_bounds_puts_numbers_into_classes():
    label = read_label("age", column_of(["3", "10", "19.5", "20", "", "1e3"]), bounds=(10.0, 20.0))
    assert label.classes == ("below 10", "10 to 20", "20 and above")
    assert label.numbers.tolist() == [0, 1, 1, 2, -1, 2]


def test_read_label_with_missing_values_leaves_them_out():
    column = column_of(["-1", "0", "3", "?"])
    assert read_label("a", column, missing=missing_of("a", ("-1", "a=?", "b=3"))).numbers.tolist() == [-1, 0, 1, -1]


def test_read_label_with_null_cells_leaves_them_out():
    assert read_label("a", Column(["1", "0"], np.array([0, -1, 1], np.int32))).numbers.tolist() == [1, -1, 0]


def test_read_label_with_declared_classes_keeps_their_numbers():
    column = Column(["2", "0", "-1"], np.array([0, 1, 2, 0], np.int32), ("ant", "bee", "cat"))
    label = read_label("kind", column)
    assert (label.classes, label.numbers.tolist()) == (("ant", "bee", "cat"), [2, 0, -1, 2])


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["0.5", "1.5"], ["decimal numbers", "'0.5'", "--data.bins a=10,20,40"]),
        (["1,5", "2,5"], ["decimal numbers", "'1,5'", "--data.bins"]),
        (["1", "1"], ["only the value '1'", "--data.labels"]),
        (["yes", "", "NA"], ["only the value 'yes'"]),
        (["", "NA"], ["no value"]),
        (["-1", "0", "1"], ["-1 next to 0, 1", "--data.missing a=-1"]),
        (["-1", "0"], ["-1 next to 0", "--data.missing"]),
        ([str(i) for i in range(MAX_CLASSES + 1)], ["128 values", "127", "--data.identity-column", "--data.bins"]),
        ([f"n{i}" for i in range(500)], ["500 values", "use it as --data.identity-column; or leave"]),
    ],
)
def test_read_label_of_other_values_is_refused_with_the_remedy(cells, words):
    with pytest.raises(InputError) as raised:
        read_label("a", column_of(cells))
    assert [word for word in ["column a", *words] if word not in str(raised.value)] == []


def test_read_label_with_the_largest_number_of_classes_is_read():
    assert len(read_label("a", column_of(map(str, range(MAX_CLASSES)))).classes) == MAX_CLASSES


@pytest.mark.parametrize("cells", [["3", "old"], ["3", "1,5"], ["3", "inf"], ["3", "1_000"]])
def test_read_label_with_bounds_refuses_what_is_no_number(cells):
    with pytest.raises(InputError, match="is no number"):
        read_label("age", column_of(cells), bounds=(10.0,))


@pytest.mark.parametrize("value", ["3", "x", "-2"])
def test_read_label_beyond_the_declared_classes_is_refused(value):
    with pytest.raises(InputError, match="declares 2 classes"):
        read_label("kind", Column(["0", value], np.array([0, 1], np.int32), ("ant", "bee")))


CELLS = st.one_of(st.text(max_size=6), st.sampled_from(["", "0", "1", "-1", "true", "no", "NA", "1.0", "2.5", "1e3", "\u0661"]))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(CELLS, min_size=1, max_size=30), st.booleans())
def test_read_label_of_any_cells_keeps_equal_cells_equal(cells, binned):
    column = column_of(cells)
    try:
        label = read_label("a", column, bounds=(1.0,) if binned else ())
    except InputError:
        return
    known = label.numbers >= 0
    assert len(label.numbers) == len(cells)
    assert label.numbers.max() < (len(label.classes) or 2)
    assert len(set(label.numbers[known].tolist())) >= 2
    for value in range(len(column.values)):
        assert len(set(label.numbers[column.codes == value].tolist())) == 1
