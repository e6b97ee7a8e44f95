"""The game on Ray: the same weights as in one process, bit for bit; places that are shared fairly and given back; plain errors."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import cloudpickle

from cpgan_ray.common.process import available_cpus
from cpgan_ray.common.types import Batch, Feedback, Release
from cpgan_ray.config import Config, NeuralConfig, RidgeConfig, RuntimeConfig, override
from cpgan_ray.config.presets import preset
from cpgan_ray.distributed import resources
from cpgan_ray.distributed.cluster import connect
from cpgan_ray.distributed.driver import RayGame
from cpgan_ray.distributed.resources import bundles, reserve
from cpgan_ray.distributed.rpc import INLINE_BYTES, share
from cpgan_ray.errors import InputError
from cpgan_ray.training.game import Game, active_adversaries, play_in_process
from tests.games import untimed
from tests.process import HANG_S, called

OVERHEAD = 4096
"""Bytes that a message may cost beyond its large arrays."""


def play_all(game: Game | RayGame) -> list[dict[str, float]]:
    played = []
    while len(played) < game.total_rounds:
        coming = game.play(3)
        played += game.get(coming) if isinstance(game, RayGame) else coming
    return played


def on_ray(config: Config) -> Config:
    return override(config, {"runtime.backend": "ray"})


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)


def all_is_free_again() -> bool:
    """Whether both CPUs of the session are free, within half a minute."""
    until = time.monotonic() + 30
    while free_cpus() < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return free_cpus() == 2


# --------------------------------------------------------------------------------------------------------- the same game


@pytest.mark.usefixtures("ray_session")
def test_the_game_on_ray_is_the_game_in_one_process_bit_for_bit_and_its_places_are_given_back(tiny, differing):
    config = tiny()
    local = play_in_process(config, threads=1)
    expected = play_all(local)
    with RayGame(on_ray(config)) as game:
        assert (game.total_rounds, game.rounds_per_epoch) == (local.total_rounds, local.rounds_per_epoch)
        assert free_cpus() < 0.01, "every CPU is taken"
        played = play_all(game)
        weights = game.weights()
    assert weights.keys() == {"privatizer", *config.adversaries}
    assert differing(local.weights(), weights) == []
    assert untimed(played) == untimed(expected)
    assert all_is_free_again()


@pytest.mark.parametrize(("schedule", "names"), [("stale1", ("rbf", "mlp")), ("epochwise", ("ridge_epoch", "mlp"))])
@pytest.mark.usefixtures("ray_session")
def test_the_other_schedules_are_the_same_on_ray_bit_for_bit(tiny, differing, schedule, names):
    config = tiny(*names, changes={"game.schedule": schedule})
    local = play_in_process(config, threads=1)
    expected = play_all(local)
    with RayGame(on_ray(config)) as game:
        assert untimed(play_all(game)) == untimed(expected)
        assert differing(local.weights(), game.weights()) == []


@pytest.mark.usefixtures("ray_session")
def test_the_smoke_preset_ends_with_the_same_weights_and_codes_on_ray_and_in_one_process(cache_dir, differing):
    config = replace(preset("smoke"), cache_dir=cache_dir)
    local = play_in_process(config, threads=1)
    expected = play_all(local)
    with RayGame(config) as game:
        played = play_all(game)
        weights, outcome = game.weights(), game.outcome()
    assert differing(local.weights(), weights) == []
    assert untimed(played) == untimed(expected)
    for split in ("train", "val", "test"):
        codes, logits = local.privatizer.codes(split)
        np.testing.assert_array_equal(outcome.codes[split], codes)
        if split != "train":
            np.testing.assert_array_equal(outcome.logits[split], logits)
    assert outcome.programs.keys() == {"privatizer", "utility_head"}


@pytest.mark.usefixtures("ray_session")
def test_without_a_privacy_weight_the_privatizer_plays_alone_on_ray(tiny, differing):
    config = tiny(privacy_weight=0, epochs=1)
    local = play_in_process(config, threads=1)
    play_all(local)
    with RayGame(on_ray(config)) as game:
        assert len(game.sizes) == 1
        play_all(game)
        assert differing(local.weights(), game.weights()) == []


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.usefixtures("ray_session")
def test_an_error_in_an_adversarys_actor_reaches_the_driver_as_it_was_raised(tiny):
    config = tiny("ridge", "mlp", changes={"adversaries.mlp.learning_rate": 1e30, "adversaries.mlp.memory_batches": 0})
    with pytest.raises(FloatingPointError) as in_process:
        play_all(play_in_process(config, threads=1))
    with RayGame(on_ray(config)) as game, pytest.raises(FloatingPointError) as on_a_cluster:
        play_all(game)
    assert type(on_a_cluster.value) is FloatingPointError
    assert str(on_a_cluster.value) == str(in_process.value)
    assert "'mlp'" in str(on_a_cluster.value)
    assert "round 1" in str(on_a_cluster.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"privatizer.depth": 7}, r"privatizer\.depth is 7"), ({"runtime.device": "cuda"}, r"runtime\.device is 'cuda'")],
)
@pytest.mark.usefixtures("ray_session")
def test_bad_input_that_only_an_actor_can_see_reaches_the_driver_as_bad_input(tiny, changes, message):
    with pytest.raises(InputError, match=message), RayGame(on_ray(tiny("ridge", changes=changes))):
        pass
    assert all_is_free_again()


@pytest.mark.usefixtures("ray_session")
def test_a_long_wait_for_the_data_of_a_node_is_told(tiny, monkeypatch, capsys):
    monkeypatch.setattr(resources, "LOOK_S", 0.05)
    monkeypatch.setattr(resources, "SAY_S", 0.1)  # to start an actor takes longer
    with RayGame(on_ray(tiny("ridge"))):
        pass
    assert {*capsys.readouterr().err.splitlines()} == {"waiting for nodes that fetch or prepare the data"}


@pytest.mark.usefixtures("ray_session")
def test_an_answer_that_is_later_than_the_deadline_stops_the_game(tiny):
    slow = {"adversaries.decoder.steps": 200}  # which it makes before its next answer
    config = tiny("decoder", changes={"runtime.reply_timeout_s": 1e-4, "recovery.max_failures": 0} | slow)
    with (
        RayGame(on_ray(config)) as game,
        pytest.raises(RuntimeError, match=r"(did not answer within|no answer for) 0\.0001 s.*max_failures = 0"),
    ):
        play_all(game)


# ------------------------------------------------------------------------------------------------------------------ places


def sized(*, ridge: RidgeConfig | None = None, **runtime: float) -> Config:
    adversaries = {"ridge": ridge or RidgeConfig(), "net": NeuralConfig()}
    return Config(adversaries=adversaries, runtime=RuntimeConfig(**runtime))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("config", "cluster", "expected"),
    [
        (sized(), {"CPU": 8.0}, [{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}]),
        (sized(), {"CPU": 1.5}, [{"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 0.5}]),
        (sized(ridge=RidgeConfig(cpus=4)), {"CPU": 8.0}, [{"CPU": 1.0}, {"CPU": 4.0}, {"CPU": 1.0}]),
        (sized(privatizer_cpus=2, adversary_cpus=3), {"CPU": 8.0}, [{"CPU": 2.0}, {"CPU": 3.0}, {"CPU": 3.0}]),
        (
            sized(ridge=RidgeConfig(gpus=0.5), privatizer_gpus=1, adversary_gpus=0.25),
            {"CPU": 8.0, "GPU": 2.0},
            [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0, "GPU": 0.25}],
        ),
        (
            sized(ridge=RidgeConfig(gpus=0), adversary_gpus=1),
            {"CPU": 3.0, "GPU": 1.0},
            [{"CPU": 1.0}] * 2 + [{"CPU": 1.0, "GPU": 1.0}],
        ),
        (sized(adversary_cpus=64, wait_s=1), {"CPU": 2.0}, [{"CPU": 2 / 3}, {"CPU": 64.0}, {"CPU": 64.0}]),
        (sized(wait_s=1), {}, [{"CPU": 1.0}] * 3),
    ],
)
def test_places_are_what_was_asked_for_or_an_equal_share(config, cluster, expected):
    assert bundles(config, active_adversaries(config), cluster=cluster) == [pytest.approx(size) for size in expected]


@pytest.mark.parametrize(
    ("nodes", "share"), [([2.0, 2.0], 0.5), ([1.0, 1.0], 0.25), ([0.0, 8.0], 1.0), ([4.0, 1.0], 2 / 3), ([0.0, 4.0], 4 / 7)]
)
def test_an_equal_share_of_several_nodes_is_one_of_which_no_actor_has_to_be_on_two(nodes, share):
    config = Config(adversaries={f"net{i}": NeuralConfig() for i in range(6)})
    sizes = bundles(config, active_adversaries(config), cluster={"CPU": sum(nodes)}, nodes=nodes)
    assert sizes == [pytest.approx({"CPU": share})] * 7


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_adversaries", [2, 5, 6])
def test_equal_shares_of_two_cpus_fit_into_two_cpus(num_adversaries):
    config = Config(adversaries={f"net{i}": NeuralConfig() for i in range(num_adversaries)})
    ray.util.remove_placement_group(reserve(bundles(config, active_adversaries(config), cluster={"CPU": 2.0}), config.runtime))
    assert all_is_free_again()


@pytest.mark.usefixtures("ray_session")
def test_room_is_waited_for_aloud_only_where_there_is_none(monkeypatch, capsys):
    assert all_is_free_again()
    raylet, *_ = called("raylet", os.getpid())
    raylet.suspend()  # so that the place is made slowly
    threading.Timer(3, raylet.resume).start()
    group = reserve([{"CPU": 2.0}], RuntimeConfig())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(resources, "PLACEMENT_S", 3.0)
    with pytest.raises(InputError, match="no room for 3 s: 1 processes need 1 CPUs, the cluster has 2"):
        reserve([{"CPU": 1.0}], RuntimeConfig())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("waiting for room: 1 processes need 1 CPUs, the cluster has 2 CPUs (0 free); for up to 3 s")
    ray.util.remove_placement_group(group)
    assert all_is_free_again()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            sized(adversary_cpus=64),
            ["3 actors", "CPUs", "the cluster has 2", "--runtime.adversary-cpus", "--runtime.startup-timeout-s"],
        ),
        (sized(ridge=RidgeConfig(cpus=2)), ["3 actors", "3.33", "CPUs", "the cluster has 2"]),
        (sized(privatizer_cpus=3), ["3 actors", "4.33", "CPUs", "the cluster has 2"]),
        (sized(adversary_gpus=0.5), ["3 actors need 1 GPUs", "the cluster has 0", "--runtime.adversary-gpus"]),
        (sized(privatizer_gpus=1), ["3 actors need 1 GPUs", "the cluster has 0"]),
    ],
)
def test_more_than_the_cluster_has_is_refused_with_the_numbers(config, words):
    with pytest.raises(InputError) as raised:
        bundles(config, active_adversaries(config), cluster={"CPU": 2.0})
    assert [word for word in words if word not in str(raised.value)] == []
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("ray_session")
def test_a_player_without_a_cpu_of_its_own_has_a_place_all_the_same(tiny):
    config = tiny("ridge", epochs=1, changes={"runtime.privatizer_cpus": 0, "runtime.adversary_cpus": 1})
    with RayGame(on_ray(config)) as game:
        assert len(play_all(game)) == game.total_rounds


# ---------------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(("rows", "k"), [(64, 16), (640, 128)])
def test_a_release_is_its_codes_and_rows_on_the_wire_and_a_feedback_its_gradient(rows, k):
    z = np.random.default_rng(0).normal(size=(rows, k)).astype(np.float32)
    batch = Batch(rows=np.arange(rows), mirrored=np.zeros(rows, bool), shift=np.zeros((rows, 2), np.int16))
    release = Release(round=3, batch=batch, z=z)
    assert len(cloudpickle.dumps(release)) <= z.nbytes + batch.rows.nbytes + OVERHEAD
    feedback = Feedback(name="an adversary", round=3, grad_z=z, r2=0.5, metrics={"mse": 0.1})
    assert len(cloudpickle.dumps(feedback)) <= z.nbytes + OVERHEAD


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("rows", [100, 200])
def test_a_large_release_is_put_into_the_object_store_once_and_a_small_one_travels_in_the_call(rows):
    z = np.zeros((rows, 128), np.float32)
    batch = Batch(rows=np.arange(rows), mirrored=np.zeros(rows, bool), shift=np.zeros((rows, 2), np.int16))
    shared = share(Release(round=0, batch=batch, z=z))
    assert isinstance(shared, ray.ObjectRef if z.nbytes > INLINE_BYTES else Release)


# ----------------------------------------------------------------------------------------------------------------- cluster


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_where_no_cluster_answers_is_refused_soon_and_named(address):
    """In a process of its own, where Ray is not connected yet."""
    code = (
        "import sys, time; from cpgan_ray.distributed.cluster import connect; from cpgan_ray.config import RuntimeConfig\n"
        "from cpgan_ray.errors import InputError\n"
        "began = time.monotonic()\n"
        "try: connect(RuntimeConfig(address=sys.argv[1]))\n"
        "except InputError as e: print(e)\n"
        "assert time.monotonic() - began < 60"
    )
    with socket.socket() as silent:  # nobody else can have its port, and nobody listens there
        silent.bind(("127.0.0.1", 0))
        address = address.format(port=silent.getsockname()[1])
        ran = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=HANG_S)
    assert ran.returncode == 0, ran.stderr[-500:]
    assert address in ran.stdout
    assert ran.stdout.count("\n") == 1


def test_a_cluster_that_somebody_else_started_on_this_machine_is_left_alone():
    """`ray start` leaves its address in a file, from which `ray.init` takes it unless told not to."""
    place = {"dir": "/tmp", "prefix": "ray-"}  # short: Ray makes socket paths of it
    with tempfile.TemporaryDirectory(**place, ignore_cleanup_errors=True) as folder:  # its processes may still write there
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:9")
        code = (
            "import ray; from cpgan_ray.distributed.cluster import connect; from cpgan_ray.config import RuntimeConfig\n"
            "connect(RuntimeConfig()); print(ray.cluster_resources()['CPU'])"
        )
        env = os.environ | {"RAY_TMPDIR": folder}
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, env=env)
        assert ran.returncode == 0, ran.stderr[-500:]
        assert float(ran.stdout) == available_cpus()


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_that_is_joined_already_is_used():
    connect(RuntimeConfig(address="nowhere:1"))
    assert ray.cluster_resources()["CPU"] == 2
