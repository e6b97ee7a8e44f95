"""Tests of tables of own pictures: forms on disk, columns of paths, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpgan_ray.data.datasets.pictures.splits import part_named
from cpgan_ray.errors import InputError
from tests.own_pictures import configure, content, csv_text, opened, write_table

NUM = 60
NAMES = [f"set {i % 3}/\u00e9{i:03d}.png" for i in range(NUM)]
COLUMNS: dict[str, list[Any]] = {
    "file": NAMES,
    "smile": [i % 2 for i in range(NUM)],
    "age; years, about": [("old", "young", "\u00fcber 'x'")[i * 7 % 5 % 3] for i in range(NUM)],
    "who": [f"p{i // 2}" for i in range(NUM)],
    "part": ["train"] * 40 + ["val"] * 10 + ["test"] * 10,
}
LABELS = {"labels": ("smile",), "identity_column": "who", "split_column": "part"}
FORMS = {
    "csv": csv_text(COLUMNS).encode(),
    "tab": csv_text(COLUMNS, delimiter="\t").encode(),
    "semicolon": csv_text(COLUMNS, delimiter=";").encode(),
    "bar": csv_text(COLUMNS, delimiter="|").encode(),
    "quoted": csv_text(COLUMNS, quoting=1).encode(),
    "mark": csv_text(COLUMNS).encode("utf-8-sig"),
    "unix": csv_text(COLUMNS, lineterminator="\n").encode(),
    "blank lines": csv_text(COLUMNS, lineterminator="\n\n").encode(),
    "no last line end": csv_text(COLUMNS).encode().rstrip(),
    "utf-16": csv_text(COLUMNS).encode("utf-16"),
    "utf-16, tab": csv_text(COLUMNS, delimiter="\t").encode("utf-16"),
    "index": csv_text({"": range(NUM), **COLUMNS}).encode(),
    "dot": csv_text({**COLUMNS, "file": [f"./{name}" for name in NAMES]}).encode(),
    "backslash": csv_text({**COLUMNS, "file": [name.replace("/", "\\") for name in NAMES]}).encode(),
    "only names": csv_text({**COLUMNS, "file": [name.partition("/")[2] for name in NAMES]}).encode(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("tables") / "data", COLUMNS)


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    dataset = opened(folder, tmp_path_factory.mktemp("cache"), table="labels.csv", **LABELS)
    assert dataset.label_names == ("smile", "age; years, about")
    assert dataset.info.classes == {"age; years, about": ["old", "young", "\u00fcber 'x'"]}
    assert dataset.train.labels[:, 0].tolist() == COLUMNS["smile"][:40]
    assert not dataset.info.anonymous
    return content(dataset)


@pytest.mark.parametrize("form", FORMS)
def test_table_of_any_form_makes_the_same_store(form, folder, expected, tmp_path):
    (folder / "t.txt").write_bytes(FORMS[form])
    assert content(opened(folder, tmp_path, table="t.txt", **LABELS)) == expected


def test_parquet_table_makes_the_same_store(folder, expected, tmp_path):
    age = pa.array(COLUMNS["age; years, about"]).dictionary_encode()
    pq.write_table(pa.table({**COLUMNS, "age; years, about": age, "box": [[1, 2]] * NUM}), folder / "t.parquet")
    assert content(opened(folder, tmp_path, table="t.parquet", **LABELS)) == expected


def test_table_without_identities_is_anonymous_and_split_by_path(folder, tmp_path):
    few = {name: cells for name, cells in COLUMNS.items() if name in ("file", "smile")}
    (folder / "few.csv").write_text(csv_text(few))
    dataset = opened(folder, tmp_path, table="few.csv")
    assert dataset.info.anonymous
    rows = np.concatenate([split.identity for split in dataset.splits.values()])
    assert sorted(rows.tolist()) == list(range(NUM))
    kept = [i for i in range(NUM) if i % 4]
    (folder / "some.csv").write_text(csv_text({name: [cells[i] for i in kept] for name, cells in few.items()}))
    some = opened(folder, tmp_path, table="some.csv")
    assert {kept[row] for row in some.train.identity.tolist()} <= set(dataset.train.identity.tolist()), "a picture keeps its split"


def test_table_with_numbered_identities_keeps_the_numbers(folder, tmp_path):
    (folder / "n.csv").write_text(csv_text({**COLUMNS, "who": [str(i // 2 * 1000) for i in range(NUM)]}))
    dataset = opened(folder, tmp_path, table="n.csv", **LABELS)
    assert dataset.test.identity.tolist() == [i // 2 * 1000 for i in range(50, 60)]


def test_table_with_only_two_splits_draws_the_third_from_train(folder, tmp_path):
    (folder / "two.csv").write_text(csv_text({**COLUMNS, "part": ["Training"] * 50 + ["TEST"] * 10}))
    dataset = opened(folder, tmp_path, table="two.csv", **LABELS)
    assert len(dataset.test) == 10
    assert len(dataset.val) > 0
    assert not set(dataset.val.identity) & set(dataset.train.identity)


def test_table_with_a_bad_column_outside_the_task_stores_the_others(folder, tmp_path):
    (folder / "more.csv").write_text(csv_text({**COLUMNS, "score": [i / 7 for i in range(NUM)]}))
    assert "score" not in opened(folder, tmp_path, table="more.csv", **LABELS).label_names
    for labels in ((), ("score",)):  # although the store exists
        with pytest.raises(InputError, match="column score has decimal numbers"):
            opened(folder, tmp_path, table="more.csv", **{**LABELS, "labels": labels})
    binned = opened(folder, tmp_path, table="more.csv", **{**LABELS, "labels": ("score",)}, bins=("score=1,4",))
    assert binned.info.classes["score"] == ["below 1", "1 to 4", "4 and above"]


def changed(**columns: Any) -> bytes:
    """The table with changed columns; a function changes the list of cells."""
    cells = {name: change([*COLUMNS.get(name, [""] * NUM)]) for name, change in columns.items()}
    return csv_text({**COLUMNS, **cells}).encode()


def at(row: int, value: Any):
    return lambda cells: [*cells[:row], value, *cells[row + 1 :]]


LINES = csv_text(COLUMNS, lineterminator="\n").splitlines()
REFUSED: dict[str, tuple[bytes, dict[str, Any], list[str]]] = {
    "ragged": ("\n".join([*LINES[:4], LINES[4] + ",x", *LINES[5:]]).encode(), {}, ["line 5", "expected 5 fields", "got 6"]),
    "open quote": ("\n".join([*LINES[:9], '"' + LINES[9], *LINES[10:]]).encode(), {}, ["not CSV"]),
    "latin": (csv_text(COLUMNS).encode("latin-1"), {}, ["not UTF-8", "0xe9", "save it as UTF-8"]),
    "utf-16 without mark": (csv_text(COLUMNS).encode("utf-16-le"), {}, ["UTF-"]),
    "nothing": (b"", {}, ["no rows"]),
    "only a header": ((LINES[0] + "\n").encode(), {}, ["no rows"]),
    "column twice": (b"file,who,who,part\n" + b"a.png,1,1,train\n", {}, ["two columns are named 'who'"]),
    "no paths": (csv_text({name: cells for name, cells in COLUMNS.items() if name != "file"}).encode(), {}, ["--data.path-column"]),
    "two columns of paths": (changed(other=lambda _: NAMES), {}, ["file and other", "--data.path-column"]),
    "path twice": (changed(file=at(7, NAMES[3])), {}, ["line 9", "listed twice", "line 5"]),
    "outside": (changed(file=at(2, "../x.png")), {}, ["line 4", "'../x.png'", "leads out of"]),
    "absolute": (changed(file=at(2, "/etc/passwd")), {}, ["line 4", "absolute"]),
    "drive": (changed(file=at(2, "C:\\x.png")), {}, ["line 4", "absolute"]),
    "no path": (changed(file=at(2, "")), {}, ["line 4", "no path"]),
    "missing file": (changed(file=at(2, "gone.png")), {}, ["1 of the 60", "gone.png", "line 4", "--skip-corrupt"]),
    "no label": (
        csv_text({"file": NAMES}).encode(),
        {"labels": (), "identity_column": "", "split_column": ""},
        ["no column of labels"],
    ),
    "path column": (FORMS["csv"], {"path_column": "path"}, ["no column 'path'", "file, smile"]),
    "identity column": (FORMS["csv"], {"identity_column": "name"}, ["no column 'name'"]),
    "split column": (FORMS["csv"], {"split_column": "fold"}, ["no column 'fold'"]),
    "unknown label": (FORMS["csv"], {"labels": ("smiles",)}, ["'smiles'", "did you mean smile"]),
    "unknown bins": (FORMS["csv"], {"bins": ("age=1,2",)}, ["data.bins", "'age'"]),
    "unknown missing": (FORMS["csv"], {"missing": ("age=-1",)}, ["data.missing", "'age'"]),
    "split value": (changed(part=at(3, "holdout")), {}, ["line 5", "'holdout'", "train, val or test"]),
    "no train": (changed(part=lambda _: ["test"] * NUM), {}, ["no picture into the training split"]),
    "identity in two splits": (changed(who=at(0, "p29")), {}, ["1 identities", "train and test", "--data.split identity"]),
    "no identity": (changed(who=at(5, "NA")), {}, ["line 7", "no identity"]),
    "one person": (changed(who=lambda _: ["p"] * NUM), {"split_column": ""}, ["split is empty", "1 identities"]),
    "one value": (changed(smile=lambda _: ["1"] * NUM), {}, ["column smile", "only the value '1'"]),
    "reserved name": (changed(identity=lambda _: [i % 2 for i in range(NUM)]), {"labels": ()}, ["column identity"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_table_with_a_fault_is_refused_in_one_line(case, folder, tmp_path):
    table, settings, words = REFUSED[case]
    (folder / "bad.csv").write_bytes(table)
    with pytest.raises(InputError) as raised:
        opened(folder, tmp_path, table="bad.csv", **{**LABELS, **settings})
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert message.isprintable()
    assert len(message) < 600
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == [], "nothing stays"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("labels.tsv", ["no such file", "labels.csv"]),
        ("../labels.csv", ["outside"]),
        ("/etc/passwd", ["outside"]),
        ("set 0", ["no such file"]),
    ],
)
def test_table_that_is_not_in_the_folder_is_refused(table, words, folder, tmp_path):
    with pytest.raises(InputError) as raised:
        opened(folder, tmp_path, table=table)
    assert [word for word in words if word not in str(raised.value)] == []


def test_missing_and_corrupt_pictures_are_skipped_only_on_demand(folder, tmp_path):
    (folder / "odd").mkdir(exist_ok=True)
    (folder / "odd" / "broken.png").write_bytes(b"not a picture")
    names = [*NAMES[:-2], "odd/broken.png", "odd/gone.png"]
    (folder / "skip.csv").write_text(csv_text({**COLUMNS, "file": names}))
    settings = {"table": "skip.csv", **LABELS}
    with pytest.raises(InputError, match=r"odd/gone\.png"):
        opened(folder, tmp_path, **settings)
    dataset = opened(folder, tmp_path, skip_corrupt=True, **settings)
    assert dataset.skipped == ("odd/gone.png", "odd/broken.png")
    assert len(dataset.test) == 8


def test_settings_of_pictures_with_another_data_set_are_refused(tmp_path):
    from cpgan_ray.config import Config, DataConfig

    with pytest.raises(InputError, match=r"data\.table is 'a\.csv', but data\.dataset is 'celeba'"):
        Config(data=DataConfig(dataset="celeba", table="a.csv"))
    with pytest.raises(InputError, match="split_column is 'part', but data.split is 'identity'"):
        configure(tmp_path, tmp_path, split="identity", split_column="part")


@pytest.mark.parametrize("bins", ["age", "age=", "age=a", "age=2,1", "age=1,1", "=1", "age=1..2"])
def test_bins_that_are_no_rising_numbers_are_refused(bins, tmp_path):
    with pytest.raises(InputError, match="data.bins"):
        configure(tmp_path, tmp_path, bins=(bins,))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("data/train-00000-of-00002.parquet", 0),
        ("Validation.parquet", 1),
        ("default/test/0000.parquet", 2),
        ("train_and_test.parquet", None),
        ("trainer.parquet", None),
        ("0000.parquet", None),
    ],
)
def test_part_named_after_a_split_is_found_as_a_whole_word(name, part):
    assert part_named(name) == part


def test_balanced_store_has_as_many_of_both_values(folder, tmp_path):
    (folder / "b.csv").write_text(csv_text({**COLUMNS, "smile": [int(i % 5 == 0) for i in range(NUM)]}))
    dataset = opened(folder, tmp_path, table="b.csv", balanced=True, **LABELS)
    assert [split.labels[:, 0].mean() for split in dataset.splits.values()] == [0.5] * 3
    with pytest.raises(InputError, match="more than two values"):
        opened(folder, tmp_path, table="b.csv", balanced=True, **{**LABELS, "labels": ("age; years, about",)})
