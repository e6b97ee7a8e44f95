"""Every example passes the checks of its kind, stays short, and its commands parse."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from cpgan_ray import cli
from cpgan_ray.check.__main__ import main

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAX_LINES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the example of own data."""
    path, rng = tmp_path_factory.mktemp("own data"), np.random.default_rng(0)
    labels = np.arange(400) % 2
    pictures = (rng.integers(0, 128, (400, 16, 16, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(path / "pictures.npz", pictures=pictures, labels=labels, people=np.arange(400) // 2)
    return path


def commands(example: Path) -> list[list[str]]:
    """The words behind `python` of the commands in an example's docstring."""
    text = re.sub(r"\\\n\s*", "", example.read_text().split('"""')[1])
    return [shlex.split(line)[1:] for line in re.findall(r"^    python .*$", text, re.MULTILINE)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_passes_its_checks(example, folder, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert len(example.read_text().splitlines()) < MAX_LINES
    (check,) = (words[2:] for words in commands(example) if words[:2] == ["-m", "cpgan_ray.check"])
    main([str(folder) if word == "FOLDER" else word for word in check])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and all(line.startswith("ok ") for line in lines[1:]), lines


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_training_command_of_an_example_names_it(example, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    trainings = [words[1:] for words in commands(example) if words[0] == "jobs/train_celeba.py"]
    for words in trainings:
        config = cli.parse([str(folder) if word == "FOLDER" else word for word in words], default="faces", description="")
        names = [config.privatizer.family, config.data.dataset, *(a.kind for a in config.adversaries.values())]
        assert any(name.startswith(f"{example}:") for name in names)
    assert trainings or example.stem == "own_attack"
