"""Tests of the digits that come with scikit-learn: values, fixed splits, no data folder."""

import zlib

import numpy as np
import pytest

from cpgan_ray.data.datasets import digits
from cpgan_ray.errors import InputError


@pytest.fixture(scope="module")
def samples() -> digits.Samples:
    return digits.read(None)


def test_values_are_scaled_to_the_full_range_without_loss(samples):
    from sklearn.datasets import load_digits

    original = load_digits(return_X_y=True)
    assert samples.values.shape == (1797, 8, 8, 1) and samples.values.dtype == np.uint8
    assert samples.values.min() == 0 and samples.values.max() == 255
    np.testing.assert_array_equal(np.rint(samples.values.reshape(1797, 64) * (16 / 255)), original[0])
    np.testing.assert_array_equal(samples.labels, original[1])


def test_each_digit_is_split_70_10_20(samples):
    rows = np.concatenate(list(samples.rows.values()))
    assert sorted(rows.tolist()) == list(range(1797))
    assert len(set(samples.identity.tolist())) == 1797
    for digit in range(10):
        total = (samples.labels == digit).sum()
        for name, share in digits.SPLIT_FRACTIONS.items():
            assert abs((samples.labels[samples.rows[name]] == digit).sum() - share * total) <= 1


def test_split_is_the_same_every_time(samples):
    repeated = digits.read()
    for name, rows in samples.rows.items():
        np.testing.assert_array_equal(repeated.rows[name], rows)
    assert zlib.crc32(samples.rows["test"].astype("<i8").tobytes()) == 1275337914


def test_pictures_and_labels_belong_together(samples):
    train, test = samples.rows["train"], samples.rows["test"]
    x = samples.values.reshape(1797, 64).astype(np.float64)
    nearest = np.square(x[test][:, None] - x[train]).sum(axis=2).argmin(axis=1)
    assert (samples.labels[train][nearest] == samples.labels[test]).mean() > 0.97


def test_files_names_the_file_in_the_package():
    [path] = digits.files()
    assert path.name == "digits.csv.gz" and path.is_file()


def test_files_with_a_folder_raises(tmp_path):
    with pytest.raises(InputError, match="come with scikit-learn: leave it out"):
        digits.read(tmp_path)


def test_files_without_the_packaged_file_raises(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").touch()
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(digits, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match=r"digits.csv.gz is missing: install scikit-learn again"):
        digits.files()
