"""Tests of the procedural faces: layout, reproducibility, and attributes that are visible in the pictures."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpgan_ray.data.datasets.faces.files import write_faces
from cpgan_ray.errors import InputError

PEOPLE, EACH = 200, 2


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces") / "set"
    write_faces(folder, num_identities=PEOPLE, pictures_per_identity=EACH, processes=2)
    return folder


def table(path: Path) -> dict[str, list[int]]:
    return {name: [int(v) for v in values] for name, *values in (line.split() for line in path.read_text().splitlines())}


def labels(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names of the attributes, and their values (pictures, attributes), True for 1."""
    _, names, *rows = (folder / "list_attr_celeba.txt").read_text().splitlines()
    return names.split(), np.array([[v == "1" for v in row.split()[1:]] for row in rows])


def pixels(folder: Path, side: int) -> np.ndarray:
    """The centred squares, (pictures, side * side * 3) float64 in [0, 1]."""
    pictures = [Image.open(p).crop((0, 10, 89, 99)) for p in sorted((folder / "img_align_celeba").iterdir())]
    return np.stack([np.asarray(p.resize((side, side), Image.Resampling.BOX)).ravel() / 255 for p in pictures])


def test_faces_are_in_the_official_layout(faces: Path) -> None:
    names = [f"{i + 1:06d}.jpg" for i in range(PEOPLE * EACH)]
    assert sorted(p.name for p in (faces / "img_align_celeba").iterdir()) == names
    assert sorted(p.name for p in faces.iterdir()) == [
        "identity_CelebA.txt",
        "img_align_celeba",
        "list_attr_celeba.txt",
        "list_eval_partition.txt",
    ]
    count, header, *rows = (faces / "list_attr_celeba.txt").read_text().splitlines()
    assert int(count) == len(rows) == len(names)
    assert [row.split()[0] for row in rows] == names
    assert all(len(row.split()) == 1 + len(header.split()) and set(row.split()[1:]) <= {"1", "-1"} for row in rows)
    assert list(table(faces / "identity_CelebA.txt")) == list(table(faces / "list_eval_partition.txt")) == names
    with Image.open(faces / "img_align_celeba" / names[0]) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (89, 109))


def test_person_has_the_given_number_of_pictures_in_one_partition(faces: Path) -> None:
    identities, partitions = table(faces / "identity_CelebA.txt"), table(faces / "list_eval_partition.txt")
    assert Counter(person for (person,) in identities.values()) == dict.fromkeys(range(1, PEOPLE + 1), EACH)
    pairs = {(identities[name][0], partitions[name][0]) for name in identities}
    assert Counter(partition for _, partition in pairs) == {0: 160, 1: 20, 2: 20}


def test_faces_depend_on_the_seed_but_not_on_processes(tmp_path: Path) -> None:
    def draw(name: str, *, seed: int, processes: int) -> dict[str, bytes]:
        write_faces(tmp_path / name, num_identities=5, pictures_per_identity=2, seed=seed, processes=processes)
        return {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}

    alone = draw("alone", seed=3, processes=1)
    assert draw("together", seed=3, processes=2) == alone
    assert draw("other", seed=4, processes=1)["img_align_celeba/000001.jpg"] != alone["img_align_celeba/000001.jpg"]
    assert len(set(alone.values())) == len(alone)


def test_people_are_the_same_in_a_larger_set(tmp_path: Path, faces: Path) -> None:
    write_faces(tmp_path / "few", num_identities=3, pictures_per_identity=EACH, processes=1)
    for picture in (tmp_path / "few" / "img_align_celeba").iterdir():
        assert picture.read_bytes() == (faces / "img_align_celeba" / picture.name).read_bytes()


def test_attribute_frequencies_are_between_5_and_95_percent(faces: Path) -> None:
    names, values = labels(faces)
    shares = dict(zip(names, values.mean(axis=0), strict=True))
    assert all(0.05 < share < 0.95 for share in shares.values()), shares


def test_attributes_are_correlated_as_in_celeba(faces: Path) -> None:
    names, values = labels(faces)
    has = dict(zip(names, values.T, strict=True))
    assert has["Wearing_Lipstick"][has["Male"]].mean() < 0.1 and has["Wearing_Lipstick"][~has["Male"]].mean() > 0.6
    assert has["No_Beard"][~has["Male"]].all() and not has["No_Beard"][has["Mustache"]].any()
    assert has["Gray_Hair"][~has["Young"]].mean() > 0.25 > has["Gray_Hair"][has["Young"]].mean()
    assert (sum(has[f"{c}_Hair"].astype(int) for c in ("Black", "Blond", "Brown", "Gray")) + has["Bald"] <= 1).all()
    permanent = [n for n in names if n not in ("Eyeglasses", "Mouth_Slightly_Open", "Smiling", "Wearing_Hat", "Wearing_Lipstick")]
    assert all((has[n].reshape(-1, EACH) == has[n].reshape(-1, EACH)[:, :1]).all() for n in permanent)


def test_attributes_of_new_people_are_linearly_predictable(faces: Path) -> None:
    names, values = labels(faces)
    x, y = pixels(faces, 24), np.where(values, 1.0, -1.0)
    fitted = np.arange(len(x)) < 300
    mean, offset = x[fitted].mean(axis=0), y[fitted].mean(axis=0)
    a = x[fitted] - mean
    dual = np.linalg.solve(a @ a.T + 20 * np.eye(len(a)), y[fitted] - offset)
    right = ((x[~fitted] - mean) @ a.T @ dual + offset > 0) == values[~fitted]
    guess = np.where(offset > 0, values[~fitted].T.mean(axis=1), 1 - values[~fitted].mean(axis=0))
    seen = [name for name, r, g in zip(names, right.mean(axis=0), guess, strict=True) if r > g + 0.02]
    assert len(seen) >= 10, seen


def test_attributes_explain_only_a_small_part_of_the_pixels(faces: Path) -> None:
    _, values = labels(faces)
    x = pixels(faces, 16)
    fitted = np.arange(len(x)) < 300
    design = np.hstack([np.ones((len(x), 1)), values])
    weights, *_ = np.linalg.lstsq(design[fitted], x[fitted], rcond=None)
    residual = ((x[~fitted] - design[~fitted] @ weights) ** 2).sum() / ((x[~fitted] - x[fitted].mean(axis=0)) ** 2).sum()
    assert residual > 0.75


def test_pictures_of_one_person_are_closer_than_of_two_people(faces: Path) -> None:
    x = pixels(faces, 32).reshape(PEOPLE, EACH, 32, 32, 3)[:, :, 6:28, 7:25].reshape(PEOPLE, EACH, -1)
    x = (x - x.mean(axis=2, keepdims=True)) / x.std(axis=2, keepdims=True)
    own = ((x[:, 0] - x[:, 1]) ** 2).mean()
    strangers = ((x[:, 0] - np.roll(x[:, 1], 1, axis=0)) ** 2).mean()
    assert own < 0.8 * strangers


def test_existing_folder_is_kept_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match="already exists"):
        write_faces(tmp_path / "set", num_identities=3, pictures_per_identity=1)
    with pytest.raises(ValueError, match="non-negative"):
        write_faces(tmp_path / "other", num_identities=3, pictures_per_identity=1, seed=-1, processes=1)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("people", "pictures_per_identity", "height", "expected"),
    [(2, 1, 109, "num_identities"), (3, 0, 109, "pictures_per_identity"), (3, 1, 8, "size")],
)
def test_too_small_face_sets_are_refused(
    tmp_path: Path, people: int, pictures_per_identity: int, height: int, expected: str
) -> None:
    with pytest.raises(InputError, match=f"^{expected} is .* must be at least"):
        write_faces(tmp_path / "set", num_identities=people, pictures_per_identity=pictures_per_identity, size=(89, height))
