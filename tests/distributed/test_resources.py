"""Tests of a changing cluster: nodes that join late, drain or fail. The games run once, in a separate process, for all tests."""

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
    """Runs everything and returns the observations; log messages are on standard error."""
    from ray._raylet import GcsClient
    from ray.util import placement_group_table

    from cpgan_ray.common import logs
    from cpgan_ray.config import Config, override
    from cpgan_ray.devtools.chaos.kills import local_cluster, same, unbroken
    from cpgan_ray.devtools.chaos.settings import FAST_HEALTH
    from cpgan_ray.distributed.driver import RayGame
    from cpgan_ray.errors import InputError
    from tests.conftest import TINY

    logs.configure()
    small = Config(**{**vars(TINY), "adversaries": {name: TINY.adversaries[name] for name in ("mlp", "ridge")}})
    waits = {
        "runtime.startup_timeout_s": 300,
        "recovery.replacement_timeout_s": 300,
        "recovery.snapshot_every": 3,
        "recovery.backoff_s": 0.1,
    }
    cpus = {"runtime.backend": "ray", "runtime.privatizer_cpus": 1, "runtime.adversary_cpus": 1}
    config = override(small, {"cache_dir": cache, "epochs": 4, **cpus, **waits})
    results: dict[str, Any] = {}
    with local_cluster(FAST_HEALTH) as cluster, ThreadPoolExecutor(1) as pool:  # only the main thread may start nodes

        def play_on(game: RayGame) -> None:
            while game.received_rounds < game.total_rounds:
                game.get(game.play(3))

        starting = pool.submit(RayGame, config)
        time.sleep(4)
        node = cluster.add_node(num_cpus=3)
        with starting.result() as game:
            game.get(game.play(3))
            results["before"] = game.warned()
            reason = 2  # DRAIN_NODE_REASON_PREEMPTION
            drained = GcsClient(address=cluster.address).drain_node(node.node_id, reason, "spot", int(1000 * (time.time() + 30)))
            assert drained[0], drained
            results["warned"], results["warned at once again"] = game.warned(), game.warned()
            game.get(game.play(1))  # the players on the node continue
            game.snapshot()
            playing = pool.submit(play_on, game)
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1)
            time.sleep(8)
            cluster.add_node(num_cpus=2)
            playing.result()
            results["same"] = same(game.weights(), unbroken(config))
            results["events"] = len(game.events)
        with RayGame(
            override(config, {"recovery.replacement_timeout_s": 6.0, "epochs": 2000})
        ) as game:  # the game is still running long after the node's end
            nodes = placement_group_table(game.group)["bundles_to_node_id"]
            (other,) = {*nodes.values()} - {nodes[0]}
            cluster.remove_node(next(n for n in cluster.worker_nodes if n.node_id == other), allow_graceful=False)
            try:
                play_on(game)
            except InputError as e:
                results["refused"] = str(e)
        try:
            RayGame(override(config, {"runtime.startup_timeout_s": 0}))
        except InputError as e:
            results["refused at the start"] = str(e)
    return results


@pytest.fixture(scope="module")
def outcome(cache_dir: Path) -> tuple[dict[str, Any], str]:
    """The results of `main`, and its standard error."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    env |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.run([sys.executable, __file__, str(cache_dir)], env=env, capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1]), process.stderr


def test_ray_game_on_a_small_cluster_logs_that_it_waits(outcome):
    message = r"waiting for free resources: 3 processes need 3 CPUs, the cluster has 0 CPUs \(0 free\); for up to 300 s \("
    assert re.search(message + r"runtime\.startup_timeout_s\)\n", outcome[1])


def test_draining_node_makes_a_checkpoint_due_and_is_logged_once(outcome):
    results, log = outcome
    assert (results["before"], results["warned"], results["warned at once again"]) == (False, True, False)
    assert len(re.findall(r"node \w{12} of this game will end soon: checkpoints every 10 s until then\n", log)) == 1


def test_game_that_loses_its_only_node_waits_and_is_bit_identical(outcome):
    results, log = outcome
    assert results["same"]
    assert results["events"], "the failure was reported"
    assert re.search(
        r"waiting for free resources: 3 processes need 3 CPUs, the cluster has [01] CPUs .*\(recovery\.replacement_t\w+\)\n", log
    )


def test_game_on_a_cluster_that_stays_too_small_names_the_remedy(outcome):
    message = (
        r"not enough free resources for 6 s: 3 processes need 3 CPUs, the cluster has [12] CPUs .*--recovery\.replacement-timeout-s"
    )
    assert re.search(message + ".*--resume continues", outcome[0]["refused"])


def test_ray_game_without_a_timeout_on_a_small_cluster_is_refused(outcome):
    assert re.search(
        r"3 actors need 3 CPUs, the cluster has [12]: .*--runtime\.startup-timeout-s", outcome[0]["refused at the start"]
    )


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
