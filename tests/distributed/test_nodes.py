"""Tests with two nodes that have separate caches: each gets the data once, and the game's result equals that of one process.

The game runs once, in a separate process, for all tests.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.process import HANG_S

NODES = ("one", "two")
NUM_PROCESSES = 2
"""Processes of each node that prepare the data at the same time."""


def main(drawn: str, folder: str) -> dict[str, Any]:
    """Runs everything and returns the observations. folder: parent of the nodes' caches; drawn: pictures in CelebA's layout."""
    import ray
    from ray.util import placement_group_table

    from cpgan_ray.config import Config, override
    from cpgan_ray.data import load, pin_store
    from cpgan_ray.devtools.chaos.kills import local_cluster, same, unbroken
    from cpgan_ray.distributed.adversary_pool import prepare_data
    from cpgan_ray.distributed.driver import RayGame
    from cpgan_ray.errors import InputError
    from tests.conftest import TINY

    class Preparer:
        """A process of a node that prepares the data."""

        def ready(self) -> None:
            pass

        def prepare(self, config: Config) -> list[str]:
            with contextlib.redirect_stderr(io.StringIO()) as log:
                prepare_data(config, {})
            return log.getvalue().splitlines()

    def prepare_on_nodes(actors: dict[tuple[str, int], Any], config: Config) -> dict[str, list[str]]:
        """Several processes of both nodes prepare the data at the same time -> the log lines of each node."""
        logs = {key: actor.prepare.remote(config) for key, actor in actors.items()}
        return {node: [line for i in range(NUM_PROCESSES) for line in ray.get(logs[node, i])] for node in NODES}

    def stores(name: str) -> dict[str, list[str]]:
        """Digests of the stores in each node's cache of that name."""
        caches = {node: Path(folder, node, name) for node in NODES}
        return {node: sorted(p.parent.name for p in cache.glob("*/manifest.json")) for node, cache in caches.items()}

    os.environ["NODE_DISK"] = str(Path(folder, "driver"))
    small = Config(**{**vars(TINY), "adversaries": {name: TINY.adversaries[name] for name in ("mlp", "ridge")}})
    changes = {"data_dir": Path(drawn).as_uri(), "data.dataset": "celeba", "runtime.placement": "SPREAD", "runtime.backend": "ray"}
    changes |= {"runtime.privatizer_cpus": 1, "runtime.adversary_cpus": 1}
    config = override(small, changes | {"cache_dir": "$NODE_DISK/own"})
    results: dict[str, Any] = {}
    with local_cluster() as cluster:
        for node in NODES:
            cluster.add_node(num_cpus=2, resources={node: 10}, env_vars={"NODE_DISK": str(Path(folder, node))})
        start: Any = ray.remote(num_cpus=0)(Preparer).options
        actors = {(node, i): start(resources={node: 1}).remote() for node in NODES for i in range(NUM_PROCESSES)}
        ray.get([actor.ready.remote() for actor in actors.values()])
        results["fetched"], results["stores"] = prepare_on_nodes(actors, config), stores("own")

        shared = {"shared_cache": str(Path(folder, "shared")), "cache_dir": "$NODE_DISK/taken"}
        dataset = load(override(config, shared))
        expected = unbroken(pin_store(override(config, shared), dataset))
        Path(drawn).rename(Path(folder, "gone"))  # now no node has a source
        taken = prepare_on_nodes(actors, pin_store(override(config, shared), dataset))
        results["taken"], results["taken stores"] = taken, stores("taken")
        actors.clear()

        playing = pin_store(override(config, shared | {"cache_dir": "$NODE_DISK/played"}), dataset)
        with RayGame(playing) as game:
            results["nodes"] = len({*placement_group_table(game.group)["bundles_to_node_id"].values()})
            while game.received_rounds < game.total_rounds:
                game.get(game.play(4))
            results["same"] = same(game.weights(), expected)
        results["played stores"] = stores("played")

        dataset.folder.rename(Path(folder, "driver's own"))  # simulates the disk of another machine
        task: Any = ray.remote(num_cpus=0)(lambda travelled: str(travelled.folder))
        results["travelled"] = ray.get(task.options(resources={"two": 1}).remote(dataset))
        results["digest"] = dataset.digest
        try:
            RayGame(override(playing, {"cache_dir": "$NOWHERE/cache"}))
        except InputError as e:
            results["refused"] = str(e)
    return results


@pytest.fixture(scope="module")
def outcome(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The results of `main`, its standard error, and its folder."""
    folder = tmp_path_factory.mktemp("nodes")
    (source,) = (path for path in cache_dir.glob("faces-*") if (path / "list_attr_celeba.txt").is_file() and _people(path) == 200)
    drawn = shutil.copytree(source, folder / "drawn")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    env |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "CPGAN_LOG_LEVEL": "info"}
    command = [sys.executable, __file__, str(drawn), str(folder)]
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1]), process.stderr, folder


def _people(folder: Path) -> int:
    return len({line.split()[1] for line in (folder / "identity_CelebA.txt").read_text().splitlines()})


def count_messages(lines: list[str]) -> Counter[str]:
    """How often each message was logged, without folders and times."""
    return Counter(re.sub(r"^(fetched \d+ files|fetched \w{16}|waiting|put).*", r"\1", line) for line in lines)


def test_prepare_data_by_several_processes_fetches_once_per_node(outcome):
    results, _, _ = outcome
    for node in NODES:
        messages = count_messages(results["fetched"][node])
        assert messages.pop("waiting", 0) <= NUM_PROCESSES - 1
        assert messages == {"fetched 403 files": 1}
        assert results["stores"][node] == [results["digest"]]


def test_prepare_data_without_a_source_fetches_the_shared_store_once(outcome):
    results, _, _ = outcome
    for node in NODES:
        messages = count_messages(results["taken"][node])
        assert messages.pop("waiting", 0) <= NUM_PROCESSES - 1
        assert messages == {f"fetched {results['digest']}": 1}
        assert results["taken stores"][node] == [results["digest"]]


def test_ray_game_on_two_nodes_is_bit_identical(outcome):
    results, _, _ = outcome
    assert results["nodes"] == 2
    assert results["same"]
    assert results["played stores"] == {node: [results["digest"]] for node in NODES}


def test_dataset_sent_to_a_task_is_opened_on_its_node(outcome):
    results, _, folder = outcome
    assert results["travelled"] == str(folder / "two" / "taken" / results["digest"])


def test_prepare_data_that_fails_on_a_node_names_it(outcome):
    results, _, _ = outcome
    message = r"on node \S+: cache_dir is \$NOWHERE/cache, which cannot be expanded on .* or give another --cache-dir"
    assert re.fullmatch(message, results["refused"])


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
