"""Tests of reading the reference implementation's result files and of comparing them with ours."""

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from cpgan_ray.analysis.published import ResultPoint, measured, published, side_by_side
from cpgan_ray.errors import InputError

SHARED = Path(os.environ.get("CPGAN_DATA", Path(__file__).parents[3] / "shared" / "data")).parent / "published"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_published_takes_smallest_error_of_each_row(tmp_path):
    ran = "Lambda,acc,mse_nn,mse_lrr,mse_krr\n0.1,0.9,30,20,40\n0.2,0.8,25,nan,1\n0.3,0.7,5,6,7\n"
    dnn = "Noise,acc,acc_pca,mse,mse_krr,mse_lrr,mse_pca,mse_pca_krr,mse_pca_lrr\n0.1,0.9,0.8,3,2,4,7,6,5\n"
    results = published(write(tmp_path, ran_cor=ran, dnn=dnn), "mnist")
    assert results == [
        ResultPoint("ran", 0.9, 20.0),
        ResultPoint("ran", 0.8, 1.0),
        ResultPoint("ran", 0.7, 5.0),
        ResultPoint("dnn", 0.9, 2.0),
        ResultPoint("resize", 0.8, 5.0),
    ]


def test_published_scales_noise_errors_of_har(tmp_path):
    write(tmp_path, noise="Noise,acc,mse\n0.1,0.9,0.005\n", ran="Lambda,acc,mse_nn,mse_lrr,mse_krr\n0.1,0.9,0.5,0.6,0.7\n")
    assert published(tmp_path, "har") == [ResultPoint("ran", 0.9, 0.5), ResultPoint("noise", 0.9, pytest.approx(0.045))]


def cell(mechanism: str, accuracy: float, *attacks: dict) -> dict:
    return {"cell": {"mechanism": mechanism}, "utility": {"accuracy": accuracy}, "attacks": list(attacks)}


def test_measured_converts_errors_to_reference_unit():
    attacks = ({"legacy_mse": 90.0, "mse_255": 2000.0}, {"legacy_mse": 95.0, "mse_255": 1500.0})
    assert measured([cell("pca", 0.8, *attacks)], "mnist") == [ResultPoint("pca", 0.8, 90.0)]
    assert measured([cell("pca", 0.8, {"mse_raw": 0.06}, {"mse_raw": 0.05})], "har") == [
        ResultPoint("pca", 0.8, pytest.approx(0.45))
    ]
    assert measured([cell("pca", 0.8, {"mse_raw": 10.0})], "gaussian") == [ResultPoint("pca", 0.8, 320.0)]


def test_side_by_side_draws_a_readable_figure():
    picture = side_by_side(
        [ResultPoint("ran", 0.9, 20.0)], [ResultPoint("ran", 0.8, 40.0), ResultPoint("cpgan", 0.95, 60.0)], "mnist"
    )
    pixels = Image.open(io.BytesIO(picture)).convert("RGB")
    assert pixels.width > 1000
    colours = pixels.getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 50


@pytest.mark.parametrize(
    ("files", "dataset", "message"),
    [
        ({}, "mnist", r"^--published .*: no hybrid_cpgan\*\.csv, .* with rows in it; give the folder of mnist$"),
        (
            {"ran": "Lambda,acc,mse_nn\n1,0.9,3\n"},
            "har",
            r"ran\.csv: no column 'mse_lrr'; is it a result file of the reference implementation\?$",
        ),
        ({"ran": "Lambda,acc,mse_nn,mse_lrr,mse_krr\n1,x,3,3,3\n"}, "har", r"ran\.csv cannot be read: could not convert"),
        (
            {"noise": "Noise,acc,mse\n1,0.9,3\n"},
            "digits",
            r"^--published: the reference implementation has no files of 'digits', only of mnist, ",
        ),
    ],
)
def test_published_bad_files_raise_named_error(tmp_path, files, dataset, message):
    with pytest.raises(InputError, match=message):
        published(write(tmp_path, **files), dataset)


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="the reference implementation's result files are not available (next to CPGAN_DATA)"
)
@pytest.mark.parametrize(
    ("folder", "dataset", "counts"),
    [
        ("MNIST", "mnist", {"cpgan": 91, "ran": 90, "noise": 17, "dnn": 17, "resize": 17}),
        ("HAR", "har", {"cpgan": 90, "ran": 90, "noise": 17, "dnn": 17, "resize": 17}),
        ("GENKI-4K", "genki4k", {"cpgan": 77, "ran": 90, "noise": 34, "dnn": 17, "resize": 17}),
        ("Synthetic_dataset", "gaussian", {"cpgan": 90, "ran": 90, "noise": 17, "dnn": 17, "resize": 17}),
    ],
)
def test_published_reads_all_rows_of_reference_files(folder, dataset, counts):
    results = published(SHARED / folder, dataset)
    assert {name: sum(p.mechanism == name for p in results) for name in counts} == counts
    assert all(0 <= p.accuracy <= 1 and p.mse > 0 for p in results), json.dumps([vars(p) for p in results[:3]])
