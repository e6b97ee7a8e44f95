"""Tests of whole jobs on unusual data: attributes with one value, pictures of one colour, identical pictures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cpgan_ray.cli import parse_attack
from cpgan_ray.config import (
    Config,
    DataConfig,
    NeuralConfig,
    PrivatizerConfig,
    RidgeConfig,
    RuntimeConfig,
    TrackingConfig,
    UtilityConfig,
)
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.attack import attack
from cpgan_ray.pipelines.train import train
from tests.attacked import ATTACKS, SIDE, Pooled, attack_flags, program
from tests.mixed import LABELS as LABELS_MIXED
from tests.mixed import mixed_config

PEOPLE = 40
PARTS = np.repeat([0, 1, 2], [48, 20, 12])
"""Two pictures of each person: 48 in train, 20 in val, 12 in test."""
LABELS = ("Smiling", "Male", "Young", "Bald")

pytestmark = pytest.mark.usefixtures("process_left_as_it_was")


def values() -> np.ndarray:
    """Labels (80, 4) that vary in every split."""
    return np.random.default_rng(0).integers(0, 2, (2 * PEOPLE, len(LABELS)))


def lay_out(folder: Path, *, images: np.ndarray, labels: np.ndarray) -> Path:
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{row + 1:06d}.jpg" for row in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / "img_align_celeba" / name, "PNG")
    lines = [f"{name} {' '.join('1' if v else '-1' for v in row)}" for name, row in zip(names, labels, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(names)), " ".join(LABELS), *lines]))
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} {row // 2}\n" for row, name in enumerate(names)))
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, PARTS, strict=True)))
    return folder


def pictures(*, coloured: bool = False) -> np.ndarray:
    """Pictures of random pixels, or of one colour each."""
    shape = (2 * PEOPLE, 1, 1, 3) if coloured else (2 * PEOPLE, SIDE, SIDE, 3)
    colours = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours, (2 * PEOPLE, SIDE, SIDE, 3)))


@pytest.fixture
def job(tmp_path: Path, mlflow_uri: str, capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Train and attack on a layout in this process. Returns the report; all its numbers must be finite, and warnings are errors."""

    def run(data: Path, *labels: str) -> dict[str, Any]:
        config = Config(
            preset="tiny",
            k=4,
            epochs=1,
            batch_size=24,
            output=tmp_path / "out",
            data_dir=data,
            data=DataConfig(dataset="celeba", image_size=SIDE, labels=labels, final_fraction=0.0),
            privatizer=PrivatizerConfig(width=4, depth=2),
            utility=UtilityConfig(hidden=8, class_weighted_loss=True),
            adversaries={
                "ridge": RidgeConfig(memory_batches=1, components=4),
                "mlp": NeuralConfig(architecture="mlp", width=8, components=4),
            },
            runtime=RuntimeConfig(backend="local", threads=1),
            attacks=replace(ATTACKS, quick_every=1),
            tracking=TrackingConfig(uri=mlflow_uri, log_models=False, system_metrics=False),
        )
        train(config)
        assert "Warning" not in capfd.readouterr().err
        return strict_json(tmp_path / "out" / "report" / "report.json")

    return run


def strict_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_train_label_constant_in_train_split_raises_with_flag(job, tmp_path):
    labels = values()
    labels[PARTS == 0, 1] = 1
    data = lay_out(tmp_path / "celeba", images=pictures(), labels=labels)
    for given, said in (
        (LABELS, r"data\.labels: Male has one value in all 48 training pictures.* --data\.labels Smiling Young Bald$"),
        ((), r"data\.labels: Male has one value in all 48 training pictures.* --data\.labels Smiling Young Bald$"),
        (("Male",), r"data\.labels: Male has one value.*: give another label with --data\.labels$"),
    ):
        with pytest.raises(InputError, match=said):
            job(data, *given)
    assert not (tmp_path / "out").exists()
    assert job(data, "Smiling")["utility"]["accuracy"] >= 0


@pytest.mark.parametrize("task", [("Male",), ("Male", "Young", "Smiling")])
def test_train_label_constant_in_val_or_test_gives_finite_report(job, tmp_path, task):
    labels = values()
    labels[PARTS == 2, 1] = 1
    labels[PARTS == 1, 1] = 0
    labels[PARTS == 1, 2] = 1
    labels[:, 3] = 0
    report = job(lay_out(tmp_path / "celeba", images=pictures(), labels=labels), *task)
    utility = report["utility"]
    assert all(0 <= value <= 1 for value in utility.values())
    for row in report["labels"]:
        balanced = [row[f"balanced_accuracy{end}"] for end in ("", "_low", "_high")]
        assert [value is None for value in balanced] == [row["name"] == "Male"] * 3, "only Male has one value in the test split"
    if task == ("Male",):
        assert utility["balanced_accuracy"] == utility["accuracy"], "there is nothing to balance"
    assert [a["name"] for a in report["attributes"]] == ["Smiling"], (
        "the map has what varies wherever it is fitted, tuned and scored"
    )
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(value is not None for row in metrics for value in row.values())


def test_train_and_attack_on_mixed_labels_with_missing_answers(tiny, tmp_path, mlflow_uri, capfd):
    changes = {"tracking.uri": mlflow_uri, "attacks.quick_every": 1, "attacks.attributes": True}
    config = mixed_config(tiny("ridge", epochs=1, output=str(tmp_path / "out"), changes=changes), tmp_path / "mixed")
    train(config)
    report = strict_json(tmp_path / "out" / "report" / "report.json")
    assert [(label["name"], label["logits"]) for label in report["task"]["labels"]] == [
        ("odd", [0, 1]),
        ("group", [1, 6]),
        ("ink", [6, 10]),
    ]
    assert all(count > 0 for label in report["task"]["labels"] for count in label["missing"].values())
    assert [row["name"] for row in report["labels"]] == list(LABELS_MIXED)
    assert report["utility"]["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in report["labels"]]))
    assert {(a["name"], a["task"]): a["chance"] for a in report["attributes"]} == {
        ("group", True): 0.2,
        ("spare", False): 0.5,
        ("ink", True): 0.25,
        ("odd", True): 0.5,
    }
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "<h2>The task</h2>" in page and "8-9" in page
    head = torch.export.load(tmp_path / "out" / "utility_head.pt2").module()
    assert head(torch.zeros(3, config.k)).shape == (3, report["task"]["num_logits"])
    flags = ["--cache-dir", str(tmp_path / "mixed"), "--output", str(tmp_path / "attack"), *attack_flags(mlflow_uri)]
    target, job = parse_attack([str(tmp_path / "out"), *flags], description="", fetch=Path)
    attack(target, job)
    again = strict_json(tmp_path / "attack" / "report" / "report.json")
    assert again["task"] == report["task"] and again["utility"] == report["utility"]
    assert "Warning" not in capfd.readouterr().err


def test_train_on_single_colour_pictures_succeeds(job, tmp_path):
    report = job(lay_out(tmp_path / "celeba", images=pictures(coloured=True), labels=values()))
    assert all(a["psnr"] > 0 and 0 <= a["ssim"] <= 1 for a in report["attacks"])


def test_train_on_identical_pictures_raises_before_output(job, tmp_path):
    data = lay_out(tmp_path / "celeba", images=pictures()[:1].repeat(2 * PEOPLE, axis=0), labels=values())
    with pytest.raises(InputError, match=r"the 48 pictures of the train split are all the same, so there is nothing to hide"):
        job(data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["labels of one value", "one picture"])
def test_attack_encoder_on_odd_labels_and_on_single_picture(tmp_path, mlflow_uri, case, capfd):
    labels = values()
    labels[PARTS == 0, 1], labels[PARTS == 2, 2], labels[:, 3] = 1, 0, 0
    images = pictures()
    data = lay_out(tmp_path / "celeba", images=images[:1].repeat(80, axis=0) if case == "one picture" else images, labels=labels)
    encoder = program(tmp_path / "e.pt2", Pooled())
    flags = ["--data-dir", str(data), "--output", str(tmp_path / "out"), *attack_flags(mlflow_uri)]
    target, job = parse_attack([str(encoder), *flags], description="", fetch=Path)
    if case == "one picture":
        with pytest.raises(InputError, match="are all the same"):
            attack(target, job)
        assert not (tmp_path / "out").exists()
    else:
        attack(target, job)
        report = strict_json(tmp_path / "out" / "report" / "report.json")
        assert [a["name"] for a in report["attributes"]] == ["Smiling"]
        assert "Warning" not in capfd.readouterr().err
