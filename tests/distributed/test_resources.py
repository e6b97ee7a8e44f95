"""A cluster that changes: nodes that come late, that are announced to go, that go. In a process of its own, once for all tests."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.process import HANG_S

pytestmark = pytest.mark.slow


def main(cache: str) -> dict[str, Any]:
    """What happens, and when; what is said is on standard error."""
    from conftest import TINY
    from ray._raylet import GcsClient
    from ray.util import placement_group_table

    from cpgan_ray.config import Config, override
    from cpgan_ray.devtools.chaos.kills import local_cluster, same, unbroken
    from cpgan_ray.devtools.chaos.settings import FAST_HEALTH
    from cpgan_ray.distributed.driver import RayGame
    from cpgan_ray.errors import InputError

    few = Config(**{**vars(TINY), "adversaries": {name: TINY.adversaries[name] for name in ("mlp", "ridge")}})
    waits = {
        "runtime.startup_timeout_s": 300,
        "recovery.replacement_timeout_s": 300,
        "recovery.snapshot_every": 3,
        "recovery.backoff_s": 0.1,
    }
    cpus = {"runtime.backend": "ray", "runtime.privatizer_cpus": 1, "runtime.adversary_cpus": 1}
    config = override(few, {"cache_dir": cache, "epochs": 4, **cpus, **waits})
    found: dict[str, Any] = {}
    with local_cluster(FAST_HEALTH) as cluster, ThreadPoolExecutor(1) as aside:  # nodes are started by the main thread only

        def play_on(game: RayGame) -> None:
            while game.known < game.total_rounds:
                game.get(game.play(3))

        opening = aside.submit(RayGame, config)
        time.sleep(4)
        node = cluster.add_node(num_cpus=3)
        with opening.result() as game:
            game.get(game.play(3))
            found["before"] = game.warned()
            spot = 2  # DRAIN_NODE_REASON_PREEMPTION
            drained = GcsClient(address=cluster.address).drain_node(node.node_id, spot, "spot", int(1000 * (time.time() + 30)))
            assert drained[0], drained
            found["warned"], found["warned at once again"] = game.warned(), game.warned()
            game.get(game.play(1))  # who is there plays on
            game.snapshot()
            playing = aside.submit(play_on, game)
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1)
            time.sleep(8)
            cluster.add_node(num_cpus=2)
            playing.result()
            found["same"] = same(game.weights(), unbroken(config))
            found["events"] = len(game.events)
        with RayGame(
            override(config, {"recovery.replacement_timeout_s": 6.0, "epochs": 2000})
        ) as game:  # long after the node is gone
            places = placement_group_table(game.group)["bundles_to_node_id"]
            (other,) = {*places.values()} - {places[0]}
            cluster.remove_node(next(n for n in cluster.worker_nodes if n.node_id == other), allow_graceful=False)
            try:
                play_on(game)
            except InputError as e:
                found["refused"] = str(e)
        try:
            RayGame(override(config, {"runtime.startup_timeout_s": 0}))
        except InputError as e:
            found["refused at the start"] = str(e)
    return found


@pytest.fixture(scope="module")
def ran(cache_dir: Path) -> tuple[dict[str, Any], str]:
    """What was found, and what was said."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    env |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, __file__, str(cache_dir)], env=env, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_game_waits_for_a_cluster_to_grow_and_says_so_at_once(ran):
    said = r"waiting for room: 3 processes need 3 CPUs, the cluster has 0 CPUs \(0 free\); for up to 300 s \(runtime\.wait_s\)\n"
    assert re.search(said, ran[1])


def test_a_node_that_is_announced_to_go_makes_a_checkpoint_due_and_is_told_once(ran):
    found, said = ran
    assert (found["before"], found["warned"], found["warned at once again"]) == (False, True, False)
    assert len(re.findall(r"node \w{12} of this game is about to go: checkpoints every 10 s until then\n", said)) == 1


def test_a_game_whose_only_node_goes_waits_for_another_and_ends_like_the_unbroken_one(ran):
    found, said = ran
    assert found["same"]
    assert found["events"], "the loss was told"
    assert re.search(r"waiting for room: 3 processes need 3 CPUs, the cluster has [01] CPUs .*\(recovery\.wait_s\)\n", said)


def test_a_cluster_that_stays_too_small_ends_the_run_with_the_numbers_and_the_remedy(ran):
    said = r"no room for 6 s: 3 processes need 3 CPUs, the cluster has [12] CPUs .*--recovery\.wait-s.*goes on with --resume"
    assert re.search(said, ran[0]["refused"])


def test_without_patience_a_cluster_that_is_too_small_is_refused_at_once(ran):
    assert re.search(r"3 actors need 3 CPUs, the cluster has [12]: .*--runtime\.wait-s", ran[0]["refused at the start"])


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
