"""Whole jobs with a user's own network, adversary and attack: in one process, on Ray, resumed, attacked and searched."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import cpgan_ray
from cpgan_ray import cli
from cpgan_ray.common.ownership import KEY_VARIABLE
from cpgan_ray.config import Config, OwnConfig, SearchJob, from_json, override, to_json
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.parts import pinned
from cpgan_ray.pipelines.train import train
from cpgan_ray.training.game import play_in_process
from tests.conftest import TINY
from tests.process import left_as_it_was
from tests.same_run import differences

pytestmark = pytest.mark.usefixtures("process_left_as_it_was")

NETWORK = """
from torch import nn

def build(config, image_shape, *, width=4):
    return nn.Sequential(nn.Conv2d(image_shape[2], width, 3, stride=4, bias=False), nn.BatchNorm2d(width), nn.ReLU())

def head(config, *, k, num_logits, image_shape):
    return nn.Linear(k, num_logits)
"""
ADVERSARY = """
import torch

class Slow:
    '''Ridge with a weight that moves slowly.'''

    def __init__(self, config, context, *, step=0.5):
        self.step = step
        self.weight = torch.zeros(context.k, context.target)

    def recover(self, z, target):
        return target.errors(z @ self.weight), slice(0, len(z))

    def improve(self, z, target):
        gram = z.T @ z + 0.1 * len(z) * torch.eye(z.shape[1])
        best = torch.linalg.solve(gram, z.T @ target.values)
        self.weight = (1 - self.step) * self.weight + self.step * best

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]
"""
ATTACK = """
from cpgan_ray.evaluation.attacks.closed_form import ridge_attack

def attack(data, config):
    return ridge_attack(data, config)
"""


def write_code(path: Path) -> Path:
    """A folder with code of each kind."""
    path.mkdir()
    for name, code in (("nets", NETWORK), ("eve", ADVERSARY), ("strikes", ATTACK)):
        (path / f"{name}.py").write_text(code)
    return path


def configuration(code: Path, cache_dir: Path, place: Path, uri: str, **changes: Any) -> Config:
    """The tiny configuration with an own privatizer, head, adversary and attack."""
    config = override(TINY, {"cache_dir": str(cache_dir), "output": str(place), "tracking.uri": uri})
    slow = OwnConfig(kind=f"{code}/eve.py:Slow", options={"step": 0.25}, components=8)
    config = dataclasses.replace(config, adversaries={"ridge": config.adversaries["ridge"], "slow": slow})
    names = {"privatizer.family": f"{code}/nets.py:build", "utility.family": f"{code}/nets.py:head"}
    names |= {"attacks.names": ["ridge", f"{code}/strikes.py:attack"], "privatizer.options.width": 6}
    return override(config, names | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_code(tmp_path / "code")


@pytest.fixture
def own(folder: Path, cache_dir: Path, tmp_path: Path, mlflow_uri: str) -> Callable[..., Config]:
    """Makes the configuration, with changed fields (dotted names), on code of the test's own."""
    return lambda **changes: configuration(folder, cache_dir, tmp_path / "run", mlflow_uri, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mlflow_template: Path) -> Config:
    """The configuration of a run in one process that has finished, for tests that only read its folder."""
    path = tmp_path_factory.mktemp("finished")
    shutil.copy(mlflow_template, path / "mlflow.db")
    config = configuration(write_code(path / "code"), cache_dir, path / "run", f"sqlite:///{path / 'mlflow.db'}")
    with left_as_it_was():
        train(config)
    return config


@pytest.fixture
def run(finished: Config) -> Path:
    """The output folder of that run."""
    assert finished.output is not None
    return finished.output


def test_own_parts_are_pinned_in_config_json_and_their_results_reported(run):
    config, code = json.loads((run / "config.json").read_text()), run.parent / "code"
    names = [config["privatizer"]["family"], config["utility"]["family"], config["adversaries"]["slow"]["kind"]]
    assert [name.partition("@")[0] for name in names] == [f"{code}/{p}" for p in ("nets.py:build", "nets.py:head", "eve.py:Slow")]
    assert all(len(name.partition("@")[2]) == 16 for name in names)
    assert config["privatizer"]["options"] == {"width": 6}
    report = cpgan_ray.load_report(run)
    r2 = {attack["name"]: attack["r2"] for attack in report["attacks"] if attack["variant"] == "leaked"}
    assert r2["strikes.attack"] == r2["ridge"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if row.get("adversary/slow/r2", 0) > 0.01]


def test_exported_privatizer_works_without_the_code(run, tmp_path):
    shutil.copy(run / "privatizer.pt2", tmp_path)
    load = "import torch; p = torch.export.load('privatizer.pt2').module(); "
    call = "print(tuple(p(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)).shape))"
    done = subprocess.run([sys.executable, "-I", "-c", load + call], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(3, 6)"


def test_run_on_ray_without_the_files_is_bit_identical(own, folder, run, monkeypatch):
    """The files are removed after the driver has read them: the players have the copies that the job ships."""
    from cpgan_ray.common.plugins import shipping
    from cpgan_ray.distributed import driver

    original = driver.connect

    def connect_and_remove(runtime: Any) -> None:
        original(runtime)
        shutil.rmtree(folder, ignore_errors=True)

    monkeypatch.setattr(shipping, "_kept", {})
    monkeypatch.setattr(driver, "connect", connect_and_remove)
    on_ray = train(own(**{"runtime.backend": "ray"}))
    assert not folder.exists()
    assert differences(run, Path(on_ray["output"]), {}) == []


@pytest.mark.slow
def test_killed_own_players_recover_bit_identical(own, differing):
    from cpgan_ray.distributed.driver import RayGame

    config = pinned(own(**{"runtime.backend": "ray", "epochs": 3, "recovery.snapshot_every": 2, "recovery.backoff_s": 0.0}))
    expected = play_in_process(config, threads=1)
    while expected.round < expected.total_rounds:
        expected.play(expected.rounds_per_epoch)
    with RayGame(config) as game:
        done = 0
        for victim in ("AdversaryActor", "GameHost", None, None, None, None):
            if done >= game.total_rounds:
                break
            started = game.play(3)
            if victim:
                kill(victim)
            done = int(game.get(started)[-1]["round"]) + 1
        while done < game.total_rounds:
            done = int(game.get(game.play(3))[-1]["round"]) + 1
        assert {player for event in game.events for player in event.players} >= {"privatizer"}
        assert differing(game.weights(), expected.weights()) == []


def kill(name: str) -> None:
    for process in psutil.Process().children(recursive=True):
        if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{name}"):
            process.kill()


def test_interrupted_run_resumes_and_refuses_changed_code(own, folder, monkeypatch):
    from cpgan_ray.common.plugins import shipping
    from cpgan_ray.pipelines import train as pipeline

    def interrupt(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    config = own(**{"recovery.checkpoint_every": 2})
    output = config.output
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert output is not None
    code = (folder / "eve.py").read_text()
    (folder / "eve.py").write_text(code + "# changed\n")
    monkeypatch.setattr(shipping, "_kept", {})
    with pytest.raises(InputError, match=r"eve\.py has changed: its digest is"):
        cpgan_ray.train(resume=output)
    (folder / "eve.py").write_text(code)
    assert cpgan_ray.train(resume=output)["output"] == str(output)


def test_config_json_of_a_run_trains_again_with_flags_on_top(run, tmp_path, in_process):
    job = Path(__file__).parents[2] / "jobs" / "train_celeba.py"
    flags = ["--output", tmp_path / "again", "--seed", "0"]
    status, out, err = in_process(job, run / "config.json", *flags)
    assert status == 0, err
    assert differences(run, Path(json.loads(out.splitlines()[-1])["output"]), {}) == []
    config = cli.parse([str(tmp_path / "again" / "config.json"), "--k", "5"], default="faces", description="")
    assert (config.k, config.output, config.privatizer.options) == (5, None, {"width": 6})


def test_code_named_in_another_users_folder_is_run_only_with_trust(finished, run, tmp_path, monkeypatch, capsys):
    """Neither a new run from the file, nor an attack; the traces are files that the code would write."""
    output, trace = tmp_path / "run", tmp_path / "trace"
    shutil.copytree(run, output)
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(trace)!r}, 'w').close()\ndef part(*a, **k):\n    raise RuntimeError\n")
    config = json.loads((output / "config.json").read_text())
    config["attacks"]["names"] = ["ridge", f"{hostile}:part"]
    config["privatizer"]["family"] = f"{hostile}:part"
    (output / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json was not written by this user, and privatizer\.family in it names code"):
        cli.parse([str(output / "config.json")], default="faces", description="")
    (output / "report" / "report.json").unlink()
    with pytest.raises(InputError, match="names code, .*hostile.py:part'.*add --trust to run it"):
        cli.parse_train(["--resume", str(output)], default="faces", description="")
    where = {"cache_dir": finished.cache_dir, "runtime": finished.runtime, "tracking": finished.tracking}
    result = cpgan_ray.attack(output, variant="leaked", output=tmp_path / "attack", **where)
    assert "code of its own as attacks (hostile.part), which is left out" in capsys.readouterr().err
    assert result["strongest"]["attack"] == "ridge"
    assert not trace.exists()
    monkeypatch.setenv(KEY_VARIABLE, "1" * 64)  # even an own key of another session does not count
    assert (
        cli.parse([str(output / "config.json"), "--trust"], default="faces", description="").privatizer.family == f"{hostile}:part"
    )
    assert not trace.exists(), "parsing alone runs nothing"


def test_attack_runs_own_code_that_a_flag_names(run, finished, tmp_path):
    cpgan_ray.attack(run, attacks=finished.attacks, variant="leaked", output=tmp_path / "attack")
    report = cpgan_ray.load_report(tmp_path / "attack")
    assert {attack["name"] for attack in report["attacks"]} == {"ridge", "strikes.attack"}


FAULTS = [
    ("nets.py", "nn.Sequential(nn.Conv2d", "nn.Sequential(nn.Conv3d", r"nets\.py.*while running the privatizer nets\.build"),
    (
        "nets.py",
        "image_shape[2], width",
        "image_shape[9], width",
        r"nets\.py:5: IndexError: tuple index out of range, while calling",
    ),
    (
        "eve.py",
        "z @ self.weight)",
        "self.weight @ z)",
        r"eve\.py:12: RuntimeError: .*while calling recover of the adversary eve\.Slow",
    ),
    ("eve.py", "gram = z.T @ z", "gram = z @ z", r"eve\.py:15: RuntimeError: .*while calling improve of the adversary eve\.Slow"),
    (
        "strikes.py",
        "return ridge_attack(data, config)",
        "return None",
        r"attack strikes\.attack returns NoneType; it must return a Fitted",
    ),
    ("nets.py", "def head(config, *, k", "def head(config, *, length", r"utility\.family nets\.head has the parameters"),
]


@pytest.mark.parametrize(("file", "old", "new", "message"), FAULTS)
def test_fault_in_own_code_is_one_line_with_file_and_line(file, old, new, message, own, folder):
    path = folder / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as raised:
        train(own())
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
def test_fault_of_an_own_adversary_on_ray_is_one_line_too(own, folder):
    path = folder / "eve.py"
    path.write_text(path.read_text().replace("gram = z.T @ z", "gram = z @ z"))
    with pytest.raises(InputError, match=r"eve\.py:15: RuntimeError: .*while calling improve"):
        train(own(**{"runtime.backend": "ray"}))


@pytest.mark.slow
def test_search_over_an_option_of_an_own_network(own, tmp_path):
    from cpgan_ray.pipelines.tune.job import search

    config = own(**{"output": str(tmp_path / "search"), "epochs": 1, "attacks.names": ["ridge"]})
    job = SearchJob(search_space=("privatizer.options.width=2,4",), searcher="grid", config=config, train_undefended=False)
    result = search(job)
    trials = json.loads((tmp_path / "search" / "frontier.json").read_text())["trials"]
    assert result.ok and sorted(t["setting"]["privatizer.options.width"] for t in trials) == [2, 4]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            "privatizer.options.depth=1,2",
            r"over privatizer\.options\.depth=1: privatizer\.options has 'depth', but nets\.build takes",
        ),
        ("privatizer.family=conv,conf", r"privatizer\.family is 'conf'; it must be one of conv, residual"),
    ],
)
def test_search_names_the_option_or_network_that_does_not_exist(space, message, own, tmp_path):
    from cpgan_ray.pipelines.tune.job import search

    config = own(output=str(tmp_path / "search"))
    with pytest.raises(InputError, match=message):
        search(SearchJob(search_space=(space,), searcher="grid", config=config))


def test_config_with_own_parts_round_trips_through_json(own):
    config = pinned(own())
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


class Given(torch.nn.Module):
    """A network that a test gives as an object."""

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(16 * 16 * 3, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x.flatten(1)).relu()


@pytest.mark.slow
def test_network_given_as_an_object_is_the_same_on_ray_and_unchanged(own, tmp_path):
    network = Given()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    changes = {"attacks.names": ["ridge"], "utility.family": "mlp"}
    local = cpgan_ray.train(own(**changes), privatizer=network)
    on_ray = cpgan_ray.train(own(**changes, **{"output": str(tmp_path / "ray"), "runtime.backend": "ray"}), privatizer=network)
    assert differences(Path(local["output"]), Path(on_ray["output"]), {}) == []
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["privatizer"]["family"].startswith("object:Given@")


def test_object_that_is_no_network_is_refused_and_one_cannot_be_resumed(own, monkeypatch):
    from cpgan_ray.common.plugins import shipping
    from cpgan_ray.models.own import family_of

    with pytest.raises(InputError, match="privatizer is int; it must be a torch.nn.Module"):
        cpgan_ray.train(own(), privatizer=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="takes a privatizer only for a new run"):
        cpgan_ray.train(resume="anywhere", privatizer=Given())
    name = family_of(Given())
    monkeypatch.setattr(shipping, "_kept", {})
    with pytest.raises(InputError, match="the network 'Given' was given as a Python object, which no file holds"):
        pinned(own(**{"privatizer.family": name}))
