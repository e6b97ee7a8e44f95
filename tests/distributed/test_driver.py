"""Tests of the game on Ray: the same results as in one process, resources of actors, errors, messages and the cluster."""

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

from cpgan_ray.common import logs
from cpgan_ray.common.process import available_cpus
from cpgan_ray.common.types import Batch, Feedback, Release
from cpgan_ray.config import Config, NeuralConfig, RidgeConfig, RuntimeConfig, override
from cpgan_ray.config.adversaries import choose_adversaries
from cpgan_ray.config.presets import preset
from cpgan_ray.distributed import resources
from cpgan_ray.distributed.cluster import connect
from cpgan_ray.distributed.driver import RayGame
from cpgan_ray.distributed.resources import bundles, reserve
from cpgan_ray.distributed.rpc import INLINE_BYTES, share
from cpgan_ray.errors import InputError
from cpgan_ray.training.game import Game, active_adversaries, play_in_process
from tests.games import untimed
from tests.mixed import mixed_config
from tests.process import HANG_S, called
from tests.teaching import with_random_teacher

OVERHEAD = 4096
"""Number of bytes that a message may have in addition to its large arrays."""


def play_all(game: Game | RayGame) -> list[dict[str, float]]:
    played = []
    while len(played) < game.total_rounds:
        started = game.play(3)
        played += game.get(started) if isinstance(game, RayGame) else started
    return played


def on_ray(config: Config) -> Config:
    return override(config, {"runtime.backend": "ray"})


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)


def all_cpus_become_free() -> bool:
    """Whether both CPUs of the session become free within 30 s."""
    deadline = time.monotonic() + 30
    while free_cpus() < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return free_cpus() == 2


# --------------------------------------------------------------------------------------------------------- the same game


@pytest.mark.parametrize("names", [("fourier_epoch", "decoder"), pytest.param((), marks=pytest.mark.slow, id="every kind")])
@pytest.mark.usefixtures("ray_session")
def test_ray_game_is_bit_identical_and_frees_its_cpus(tiny, differing, names):
    config = tiny(*names)
    local = play_in_process(config, threads=1)
    expected = play_all(local)
    with RayGame(on_ray(config)) as game:
        assert (game.total_rounds, game.rounds_per_epoch) == (local.total_rounds, local.rounds_per_epoch)
        assert free_cpus() < 0.01, "every CPU is in use"
        played = play_all(game)
        weights = game.weights()
    assert weights.keys() == {"privatizer", *config.adversaries}
    assert differing(local.weights(), weights) == []
    assert untimed(played) == untimed(expected)
    assert all_cpus_become_free()


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("ray_session")
def test_ray_game_with_copies_of_one_adversary_is_bit_identical(tiny, differing, count):
    config = choose_adversaries(tiny("mlp", changes={"epochs": 1}), words=[f"mlp={count}"])
    names = [f"mlp-{i}" for i in range(1, count + 1)]
    local = play_in_process(config, threads=1)
    expected = play_all(local)
    with RayGame(on_ray(config)) as game:
        played = play_all(game)
        weights = game.weights()
    assert weights.keys() == {"privatizer", *names}
    assert differing(local.weights(), weights) == []
    assert untimed(played) == untimed(expected)
    assert len({played[-1][f"adversary/{name}/mse"] for name in names}) == count, "each copy has its own random stream"


@pytest.mark.parametrize(
    ("schedule", "names"), [("stale1", ("rbf", "mlp")), pytest.param("epochwise", ("ridge_epoch", "mlp"), marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("ray_session")
def test_ray_game_with_other_schedules_is_bit_identical(tiny, differing, schedule, names):
    config = tiny(*names, changes={"game.schedule": schedule})
    local = play_in_process(config, threads=1)
    expected = play_all(local)
    with RayGame(on_ray(config)) as game:
        assert untimed(play_all(game)) == untimed(expected)
        assert differing(local.weights(), game.weights()) == []


@pytest.mark.usefixtures("ray_session")
def test_ray_game_on_mixed_labels_with_teachers_is_bit_identical(tiny, differing, tmp_path):
    weighted = {"utility.class_weighted_loss": True, "epochs": 1}
    weighted |= {"privatizer.levels": 3, "privatizer.quantization_step": 1.0, "game.rate_weight": 0.01}
    weighted |= {"utility.label_weights": ["odd=0.3", "ink=2"]}
    config = with_random_teacher(mixed_config(tiny("mlp", changes=weighted), tmp_path), tmp_path)
    with RayGame(on_ray(config)) as game:
        played, weights = play_all(game), game.weights()
    local = play_in_process(config, threads=1)
    expected = play_all(local)
    assert untimed(played) == untimed(expected)
    assert differing(local.weights(), weights) == []
    assert all(np.isfinite(value) for metrics in expected for value in metrics.values())
    assert local.privatizer.codes("test")[1].shape[1] == 1 + 5 + 4


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_ray_game_of_the_smoke_preset_has_identical_codes(cache_dir, differing):
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
def test_ray_game_without_a_privacy_weight_has_no_adversaries(tiny, differing):
    config = tiny(privacy_weight=0, epochs=1)
    local = play_in_process(config, threads=1)
    play_all(local)
    with RayGame(on_ray(config)) as game:
        assert len(game.sizes) == 1
        play_all(game)
        assert differing(local.weights(), game.weights()) == []


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.usefixtures("ray_session")
def test_error_in_an_adversary_actor_reaches_the_driver_unchanged(tiny):
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
    [
        ({"privatizer.depth": 7}, r"privatizer\.depth is 7"),
        pytest.param({"runtime.device": "cuda"}, r"runtime\.device is 'cuda'", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("ray_session")
def test_input_error_in_an_actor_reaches_the_driver_as_input_error(tiny, changes, message):
    with pytest.raises(InputError, match=message), RayGame(on_ray(tiny("ridge", changes=changes))):
        pass
    assert all_cpus_become_free()


@pytest.mark.usefixtures("ray_session")
def test_long_wait_for_the_data_of_a_node_is_logged(tiny, monkeypatch, capsys):
    logs.configure()
    monkeypatch.setattr(resources, "POLL_EVERY_S", 0.05)
    monkeypatch.setattr(resources, "LOG_EVERY_S", 0.1)  # starting an actor takes longer
    with RayGame(on_ray(tiny(privacy_weight=0))):
        pass
    assert {*capsys.readouterr().err.splitlines()} == {"waiting for nodes that fetch or prepare the data"}


@pytest.mark.usefixtures("ray_session")
def test_reply_after_the_deadline_stops_the_game(tiny):
    slow = {"adversaries.decoder.steps": 20}  # learning steps before the next response
    config = tiny("decoder", changes={"runtime.reply_timeout_s": 1e-4, "recovery.max_failures": 0} | slow)
    with (
        RayGame(on_ray(config)) as game,
        pytest.raises(RuntimeError, match=r"(did not respond within|no response for) 0\.0001 s.*max_failures = 0"),
    ):
        play_all(game)


# --------------------------------------------------------------------------------------------------------------- resources


def config_with(*, ridge: RidgeConfig | None = None, **runtime: float) -> Config:
    adversaries = {"ridge": ridge or RidgeConfig(), "net": NeuralConfig()}
    return Config(adversaries=adversaries, runtime=RuntimeConfig(**runtime))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("config", "cluster", "expected"),
    [
        (config_with(), {"CPU": 8.0}, [{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}]),
        (config_with(), {"CPU": 1.5}, [{"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 0.5}]),
        (config_with(ridge=RidgeConfig(cpus=4)), {"CPU": 8.0}, [{"CPU": 1.0}, {"CPU": 4.0}, {"CPU": 1.0}]),
        (config_with(privatizer_cpus=2, adversary_cpus=3), {"CPU": 8.0}, [{"CPU": 2.0}, {"CPU": 3.0}, {"CPU": 3.0}]),
        (
            config_with(ridge=RidgeConfig(gpus=0.5), privatizer_gpus=1, adversary_gpus=0.25),
            {"CPU": 8.0, "GPU": 2.0},
            [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0, "GPU": 0.25}],
        ),
        (
            config_with(ridge=RidgeConfig(gpus=0), adversary_gpus=1),
            {"CPU": 3.0, "GPU": 1.0},
            [{"CPU": 1.0}] * 2 + [{"CPU": 1.0, "GPU": 1.0}],
        ),
        (config_with(adversary_cpus=64, startup_timeout_s=1), {"CPU": 2.0}, [{"CPU": 2 / 3}, {"CPU": 64.0}, {"CPU": 64.0}]),
        (config_with(startup_timeout_s=1), {}, [{"CPU": 1.0}] * 3),
    ],
)
def test_bundles_are_as_configured_or_equal_shares(config, cluster, expected):
    assert bundles(config, active_adversaries(config), cluster=cluster) == [pytest.approx(size) for size in expected]


@pytest.mark.parametrize(
    ("nodes", "share"), [([2.0, 2.0], 0.5), ([1.0, 1.0], 0.25), ([0.0, 8.0], 1.0), ([4.0, 1.0], 2 / 3), ([0.0, 4.0], 4 / 7)]
)
def test_bundles_on_several_nodes_fit_without_splitting_an_actor(nodes, share):
    config = Config(adversaries={f"net{i}": NeuralConfig() for i in range(6)})
    sizes = bundles(config, active_adversaries(config), cluster={"CPU": sum(nodes)}, nodes=nodes)
    assert sizes == [pytest.approx({"CPU": share})] * 7


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_adversaries", [2, 5, 6])
def test_bundles_of_equal_shares_fit_into_two_cpus(num_adversaries):
    config = Config(adversaries={f"net{i}": NeuralConfig() for i in range(num_adversaries)})
    ray.util.remove_placement_group(reserve(bundles(config, active_adversaries(config), cluster={"CPU": 2.0}), config.runtime))
    assert all_cpus_become_free()


@pytest.mark.usefixtures("ray_session")
def test_reserve_logs_a_wait_only_if_resources_are_missing(monkeypatch, capsys):
    logs.configure()
    assert all_cpus_become_free()
    raylet, *_ = called("raylet", os.getpid())
    raylet.suspend()  # delays the placement
    threading.Timer(3, raylet.resume).start()
    group = reserve([{"CPU": 2.0}], RuntimeConfig())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(resources, "PLACEMENT_TIMEOUT_S", 3.0)
    with pytest.raises(InputError, match="not enough free resources for 3 s: 1 processes need 1 CPUs, the cluster has 2"):
        reserve([{"CPU": 1.0}], RuntimeConfig())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("waiting for free resources: 1 processes need 1 CPUs, the cluster has 2 CPUs (0 free); for up to 3 s")
    ray.util.remove_placement_group(group)
    assert all_cpus_become_free()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            config_with(adversary_cpus=64),
            ["3 actors", "CPUs", "the cluster has 2", "--runtime.adversary-cpus", "--runtime.startup-timeout-s"],
        ),
        (config_with(ridge=RidgeConfig(cpus=2)), ["3 actors", "3.33", "CPUs", "the cluster has 2"]),
        (config_with(privatizer_cpus=3), ["3 actors", "4.33", "CPUs", "the cluster has 2"]),
        (config_with(adversary_gpus=0.5), ["3 actors need 1 GPUs", "the cluster has 0", "--runtime.adversary-gpus"]),
        (config_with(privatizer_gpus=1), ["3 actors need 1 GPUs", "the cluster has 0"]),
    ],
)
def test_bundles_beyond_the_cluster_are_refused_with_the_numbers(config, words):
    with pytest.raises(InputError) as raised:
        bundles(config, active_adversaries(config), cluster={"CPU": 2.0})
    assert [word for word in words if word not in str(raised.value)] == []
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("ray_session")
def test_ray_game_with_a_player_without_cpus_plays_all_rounds(tiny):
    config = tiny("ridge", epochs=1, changes={"runtime.privatizer_cpus": 0, "runtime.adversary_cpus": 1})
    with RayGame(on_ray(config)) as game:
        assert len(play_all(game)) == game.total_rounds


# ---------------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(("rows", "k"), [(64, 16), (640, 128)])
def test_serialised_messages_have_little_overhead(rows, k):
    z = np.random.default_rng(0).normal(size=(rows, k)).astype(np.float32)
    batch = Batch(rows=np.arange(rows), mirrored=np.zeros(rows, bool), shift=np.zeros((rows, 2), np.int16))
    release = Release(round=3, batch=batch, z=z)
    assert len(cloudpickle.dumps(release)) <= z.nbytes + batch.rows.nbytes + OVERHEAD
    feedback = Feedback(name="an adversary", round=3, grad_z=z, r2=0.5, metrics={"mse": 0.1})
    assert len(cloudpickle.dumps(feedback)) <= z.nbytes + OVERHEAD


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("rows", [100, 200])
def test_share_puts_only_large_releases_into_the_object_store(rows):
    z = np.zeros((rows, 128), np.float32)
    batch = Batch(rows=np.arange(rows), mirrored=np.zeros(rows, bool), shift=np.zeros((rows, 2), np.int16))
    shared = share(Release(round=0, batch=batch, z=z))
    assert isinstance(shared, ray.ObjectRef if z.nbytes > INLINE_BYTES else Release)


# ----------------------------------------------------------------------------------------------------------------- cluster


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{port}", *(pytest.param(a, marks=pytest.mark.slow) for a in ("nonsense", "ray://127.0.0.1:{port}"))]
)
def test_connect_to_an_address_without_a_cluster_is_refused_soon(address):
    """Runs in a separate process, in which Ray is not connected yet."""
    code = (
        "import sys, time; from cpgan_ray.distributed.cluster import connect; from cpgan_ray.config import RuntimeConfig\n"
        "from cpgan_ray.errors import InputError\n"
        "started = time.monotonic()\n"
        "try: connect(RuntimeConfig(address=sys.argv[1]))\n"
        "except InputError as e: print(e)\n"
        "assert time.monotonic() - started < 60"
    )
    with socket.socket() as silent:  # a bound port on which nobody listens
        silent.bind(("127.0.0.1", 0))
        address = address.format(port=silent.getsockname()[1])
        result = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=HANG_S)
    assert result.returncode == 0, result.stderr[-500:]
    assert address in result.stdout
    assert result.stdout.count("\n") == 1


def test_connect_ignores_a_cluster_of_another_user_on_this_machine():
    """`ray start` writes its address to a file, from which `ray.init` reads it by default."""
    options = {"dir": "/tmp", "prefix": "ray-"}  # short: Ray's socket paths begin with it
    with tempfile.TemporaryDirectory(**options, ignore_cleanup_errors=True) as folder:  # Ray's processes may still write there
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:9")
        code = (
            "import ray; from cpgan_ray.distributed.cluster import connect; from cpgan_ray.config import RuntimeConfig\n"
            "connect(RuntimeConfig()); print(ray.cluster_resources()['CPU'])"
        )
        env = os.environ | {"RAY_TMPDIR": folder}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, env=env)
        assert result.returncode == 0, result.stderr[-500:]
        assert float(result.stdout) == available_cpus()


@pytest.mark.usefixtures("ray_session")
def test_connect_when_already_connected_keeps_the_cluster():
    connect(RuntimeConfig(address="nowhere:1"))
    assert ray.cluster_resources()["CPU"] == 2


@pytest.mark.usefixtures("ray_session")
def test_ray_game_with_noise_is_bit_identical(tiny, differing):
    config = tiny("ridge", changes={"privatizer.noise": 0.5, "privatizer.quantization_step": 0.5})
    local = play_in_process(config, threads=1)
    expected = play_all(local)
    with RayGame(on_ray(config)) as game:
        assert untimed(play_all(game)) == untimed(expected)
        assert differing(local.weights(), game.weights()) == []
