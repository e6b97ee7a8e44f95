"""Two nodes with caches of their own: each gets the data once, whoever asks, and the outcome is that of one process.

In a process of its own, once for all tests.
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
ASKING = 3
"""Processes of each node that ask at once."""


def main(drawn: str, folder: str) -> dict[str, Any]:
    """What becomes of nodes' caches below `folder`; `drawn` is in CelebA's layout."""
    import ray
    from conftest import TINY
    from ray.util import placement_group_table

    from cpgan_ray.config import Config, override
    from cpgan_ray.data import load, pin_store
    from cpgan_ray.devtools.chaos.kills import local_cluster, same, unbroken
    from cpgan_ray.distributed.adversary_pool import prepare_data
    from cpgan_ray.distributed.driver import RayGame
    from cpgan_ray.errors import InputError

    class Asking:
        """A process of a node that asks for the data."""

        def ready(self) -> None:
            pass

        def ask(self, config: Config) -> list[str]:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                prepare_data(config, {})
            return said.getvalue().splitlines()

    def asked(config: Config) -> dict[str, list[str]]:
        """Several processes of both nodes ask at once -> what was said on each node."""
        start: Any = ray.remote(num_cpus=0)(Asking).options
        actors = {(node, i): start(resources={node: 1}).remote() for node in NODES for i in range(ASKING)}
        ray.get([actor.ready.remote() for actor in actors.values()])
        answers = {who: actor.ask.remote(config) for who, actor in actors.items()}
        return {node: [line for i in range(ASKING) for line in ray.get(answers[node, i])] for node in NODES}

    def stores(name: str) -> dict[str, list[str]]:
        """Digests of the stores in each node's cache of that name."""
        caches = {node: Path(folder, node, name) for node in NODES}
        return {node: sorted(p.parent.name for p in cache.glob("*/manifest.json")) for node, cache in caches.items()}

    os.environ["NODE_DISK"] = str(Path(folder, "driver"))
    few = Config(**{**vars(TINY), "adversaries": {name: TINY.adversaries[name] for name in ("mlp", "ridge")}})
    changes = {"data_dir": Path(drawn).as_uri(), "data.dataset": "celeba", "runtime.placement": "SPREAD", "runtime.backend": "ray"}
    changes |= {"runtime.privatizer_cpus": 1, "runtime.adversary_cpus": 1}
    config = override(few, changes | {"cache_dir": "$NODE_DISK/own"})
    found: dict[str, Any] = {}
    with local_cluster() as cluster:
        for node in NODES:
            cluster.add_node(num_cpus=2, resources={node: 10}, env_vars={"NODE_DISK": str(Path(folder, node))})
        found["fetched"], found["stores"] = asked(config), stores("own")

        shared = {"shared_cache": str(Path(folder, "shared")), "cache_dir": "$NODE_DISK/taken"}
        dataset = load(override(config, shared))
        expected = unbroken(pin_store(override(config, shared), dataset))
        Path(drawn).rename(Path(folder, "gone"))  # no node has a source now
        found["taken"], found["taken stores"] = asked(pin_store(override(config, shared), dataset)), stores("taken")

        playing = pin_store(override(config, shared | {"cache_dir": "$NODE_DISK/played"}), dataset)
        with RayGame(playing) as game:
            found["nodes"] = len({*placement_group_table(game.group)["bundles_to_node_id"].values()})
            while game.known < game.total_rounds:
                game.get(game.play(4))
            found["same"] = same(game.weights(), expected)
        found["played stores"] = stores("played")

        dataset.folder.rename(Path(folder, "driver's own"))  # as if it were on another machine's disk
        task: Any = ray.remote(num_cpus=0)(lambda travelled: str(travelled.folder))
        found["travelled"] = ray.get(task.options(resources={"two": 1}).remote(dataset))
        found["digest"] = dataset.digest
        try:
            RayGame(override(playing, {"cache_dir": "$NOWHERE/cache"}))
        except InputError as e:
            found["refused"] = str(e)
    return found


@pytest.fixture(scope="module")
def ran(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """What was found, what was said, and where."""
    folder = tmp_path_factory.mktemp("nodes")
    (source,) = (path for path in cache_dir.glob("faces-*") if (path / "list_attr_celeba.txt").is_file() and _people(path) == 200)
    drawn = shutil.copytree(source, folder / "drawn")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    env |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, __file__, str(drawn), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr, folder


def _people(folder: Path) -> int:
    return len({line.split()[1] for line in (folder / "identity_CelebA.txt").read_text().splitlines()})


def kinds(lines: list[str]) -> Counter[str]:
    """How often each thing was said, without where and how long."""
    return Counter(re.sub(r"^(fetched \d+ files|fetched \w{16}|waiting|put).*", r"\1", line) for line in lines)


def test_each_node_fetches_and_prepares_once_though_several_processes_ask(ran):
    found, _, _ = ran
    for node in NODES:
        said = kinds(found["fetched"][node])
        assert said.pop("waiting", 0) <= ASKING - 1
        assert said == {"fetched 403 files": 1}
        assert found["stores"][node] == [found["digest"]]


def test_nodes_that_have_no_source_take_the_store_from_where_it_is_shared_once(ran):
    found, _, _ = ran
    for node in NODES:
        said = kinds(found["taken"][node])
        assert said.pop("waiting", 0) <= ASKING - 1
        assert said == {f"fetched {found['digest']}": 1}
        assert found["taken stores"][node] == [found["digest"]]


def test_a_game_on_both_nodes_ends_like_the_one_in_one_process(ran):
    found, _, _ = ran
    assert found["nodes"] == 2
    assert found["same"]
    assert found["played stores"] == {node: [found["digest"]] for node in NODES}


def test_a_data_set_that_is_handed_to_a_task_is_opened_on_its_node(ran):
    found, _, folder = ran
    assert found["travelled"] == str(folder / "two" / "taken" / found["digest"])


def test_what_a_node_cannot_do_is_told_with_its_name(ran):
    found, _, _ = ran
    told = (
        r"on node \S+: cache_dir is \$NOWHERE/cache, which cannot be expanded on \S+: set the variable .* give another --cache-dir"
    )
    assert re.fullmatch(told, found["refused"])


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
