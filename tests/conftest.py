"""Shared fixtures: a small configuration with prepared faces, MLflow stores, jobs, and a Ray session."""

import contextlib
import gc
import logging
import os
import runpy
import secrets
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cpgan_ray.common import logs, signals
from cpgan_ray.common.logs import LEVEL_VARIABLE
from cpgan_ray.common.ownership import KEY_VARIABLE
from cpgan_ray.common.plugins import shipping
from cpgan_ray.config import (
    AttackConfig,
    Config,
    DataConfig,
    KernelConfig,
    NeuralConfig,
    PrivatizerConfig,
    RidgeConfig,
    RuntimeConfig,
    TrackingConfig,
    UtilityConfig,
    override,
)
from cpgan_ray.config.presets import preset
from cpgan_ray.data import load
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.deploy.bundle import Bundle, read_bundle
from cpgan_ray.mechanisms import MECHANISMS
from tests import cpu_seconds
from tests.process import below, end_all, environment, free_ports, left_as_it_was, token_file, wait_until

FACES = DataConfig(image_size=16, num_identities=200, pictures_per_identity=2, final_fraction=0.0)
"""The smoke preset's faces with smaller pictures, so that the faces are drawn only once; without a final split, so that numbers of
rows are round."""
COMPONENTS = 8
ROUNDS_PER_EPOCH = 4

TINY = Config(
    preset="tiny",
    k=6,
    epochs=2,
    batch_size=80,
    data=FACES,
    privatizer=PrivatizerConfig(width=4, depth=2),
    utility=UtilityConfig(hidden=16),
    adversaries={
        "ridge": RidgeConfig(memory_batches=1, components=COMPONENTS),
        "ridge_epoch": RidgeConfig(fit="epoch", components=COMPONENTS),
        "rbf": KernelConfig(memory_batches=2, components=COMPONENTS, code_normalization="whitened", tune_every=3),
        "fourier": KernelConfig(features=16, memory_batches=1, components=COMPONENTS, code_normalization="standardised"),
        "fourier_epoch": KernelConfig(fit="epoch", features=16, components=COMPONENTS),
        "mlp": NeuralConfig(architecture="mlp", width=16, components=COMPONENTS, dropout=0.2, memory_batches=1, steps=2),
        "decoder": NeuralConfig(architecture="conv", width=4),
    },
    runtime=RuntimeConfig(backend="local", threads=1),
    attacks=AttackConfig(
        names=("ridge",),
        mlp_widths=(16,),
        decoder_width=2,
        epochs=1,
        max_budget_doublings=0,
        restarts=1,
        kernel_features=16,
        fit_fractions=(),
        num_shifted=1,
        identity=False,
        attributes=False,
        similarity=False,
        generative=False,
    ),
    tracking=TrackingConfig(log_models=False, system_metrics=False),
)
"""Every kind of adversary, each as small as possible."""

EXEMPT = (
    # MLflow's SQL store uses a loader strategy that SQLAlchemy 2.1 deprecates.
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
    # Ray Serve's schema, when it is imported.
    "ignore:Using extra keyword arguments on `Field` is deprecated:DeprecationWarning",
)
"""Warnings of other packages that we cannot avoid; all other warnings are errors."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-seconds", type=Path, metavar="FILE", help="measure the CPU seconds of each test file, and write them")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["RAY_AUTH_TOKEN_PATH"] = token_file()
    for line in EXEMPT:
        config.addinivalue_line("filterwarnings", line)
    if path := config.getoption("--cpu-seconds"):
        cpu_seconds.activate(config, path)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Without garbage collection: the imported libraries and the collected tests live as long as the process."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


SLOWEST = ("pipelines", "cluster", "distributed", "tracking")
"""Folders with long files, in their order among the files without a record."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files run first, so that no process has a long file left when the others have finished."""
    seconds = cpu_seconds.recorded()

    def rank(item: pytest.Item) -> tuple[float, int]:
        file = item.path.relative_to(cpu_seconds.FOLDER)
        folder = file.parts[0]
        return -seconds.get(file.as_posix(), 0.0), SLOWEST.index(folder) if folder in SLOWEST else len(SLOWEST)

    items.sort(key=rank)  # stable: the order within a file stays


@pytest.fixture(scope="session", autouse=True)
def own_key() -> Iterator[None]:
    """Sets one owner key for this session, so that runs of the tests are the user's own, without files in the home folder."""
    before = os.environ.get(KEY_VARIABLE)
    os.environ[KEY_VARIABLE] = secrets.token_hex(32)
    yield
    os.environ.pop(KEY_VARIABLE)
    if before is not None:
        os.environ[KEY_VARIABLE] = before


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the prepared stores and projections of TINY and of the smoke preset, so that runs do not prepare them."""
    folder = tmp_path_factory.mktemp("cache")
    for config, components in ((TINY, {COMPONENTS}), (preset("smoke"), {32})):
        dataset = load(override(config, {"cache_dir": str(folder)}), progress=False)
        for p in components | {DEFAULT_COMPONENTS}:
            projection(dataset, components=p, progress=False)
    return folder


@pytest.fixture(scope="session")
def tiny_config(cache_dir: Path) -> Config:
    """TINY with the prepared cache."""
    return override(TINY, {"cache_dir": str(cache_dir)})


@pytest.fixture
def tiny(cache_dir: Path) -> Callable[..., Config]:
    """Makes TINY with changed fields (dotted names) and only the named adversaries: `tiny("rbf", epochs=1)`."""

    def make(*names: str, changes: Mapping[str, Any] | None = None, **fields: Any) -> Config:
        config = override(TINY, {"cache_dir": str(cache_dir), **fields, **(changes or {})})
        chosen = {name: config.adversaries[name] for name in names or config.adversaries}
        return Config(**{**vars(config), "adversaries": chosen})

    return make


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of every leaf in nested dicts, lists and tuples."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}/{i}")
    else:
        yield path, value


@pytest.fixture(scope="session")
def differing() -> Callable[[Any, Any], list[str]]:
    """A function that returns the paths at which two nested states are not bit-identical."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return type(a) is type(b) and a == b

    def compare(state: Any, other: Any) -> list[str]:
        a, b = dict(leaves(state)), dict(leaves(other))
        return sorted(path for path in a.keys() | b.keys() if not (path in a and path in b and same(a[path], b[path])))

    return compare


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database. Creating it takes 4 s, copying it almost nothing."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(tmp_path: Path, mlflow_template: Path) -> str:
    """URI of a separate tracking store for the test."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


class TrackingServer:
    """A real MLflow server with one worker on a port of this machine, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> str:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        env = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        self.process = subprocess.Popen(command, env=env, cwd=self.folder, text=True, **quiet)
        wait_until(self.responds, "the tracking server does not respond", job=self.process, every_s=0.2)
        return self.uri

    def responds(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
            return True
        return False

    def stop(self) -> None:
        if self.process is not None:
            end_all(self.process)
            self.process = None


@pytest.fixture
def mlflow_server(tmp_path: Path, mlflow_template: Path) -> Iterator[TrackingServer]:
    """A tracking server, not started yet."""
    shutil.copy(mlflow_template, tmp_path / "server.db")
    server = TrackingServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a job in the test's folder and waits for a condition. At the end the job is killed."""
    jobs: list[subprocess.Popen[str]] = []

    def start(command: Sequence[str | Path], true: Callable[[], object], what: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        jobs.append(subprocess.Popen([*map(str, command)], cwd=tmp_path, env=environment(), stdout=pipe, stderr=pipe, text=True))
        wait_until(true, what, job=jobs[-1])
        return jobs[-1]

    yield start
    for job in jobs:
        end_all(job)


@pytest.fixture(autouse=True)
def signals_left_as_they_were() -> Iterator[None]:
    """Resets the signal handling, which `cli.run` installs until the end of the process."""
    yield
    signals.reset()


@pytest.fixture(autouse=True)
def own_parts_forgotten() -> Iterator[None]:
    """Forgets the own parts that a test has used: Ray would have to be started again to send their files."""
    kept, packages = dict(shipping._kept), set(shipping._packages)
    yield
    for now, before in ((shipping._kept, kept), (shipping._packages, packages)):
        now.clear()
        now.update(before)
    for name in MECHANISMS.added:
        del MECHANISMS[name]
    MECHANISMS.added.clear()


@pytest.fixture(autouse=True)
def logging_of_a_job() -> Iterator[None]:
    """Messages go to standard error, as in a job, and to pytest's `caplog`."""
    level = os.environ.pop(LEVEL_VARIABLE, None)
    logs.configure("info")
    logging.getLogger("cpgan_ray").propagate = True
    yield
    os.environ.pop(LEVEL_VARIABLE, None)
    if level is not None:
        os.environ[LEVEL_VARIABLE] = level


@pytest.fixture
def process_left_as_it_was() -> Iterator[None]:
    with left_as_it_was():
        yield


@pytest.fixture
def in_process(
    process_left_as_it_was: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """A function that runs a job in this process, in an empty folder, and returns status, stdout and stderr. It saves a new
    process."""

    def start(job: Path, *arguments: str | Path) -> tuple[int, str, str]:
        (tmp_path / "here").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setattr(sys, "argv", [str(job), *map(str, arguments)])
        capfd.readouterr()
        status: Any = 0
        try:
            runpy.run_path(str(job), run_name="__main__")
        except SystemExit as e:
            status = e.code
        output = capfd.readouterr()
        return status, output.out, output.err

    return start


@pytest.fixture(scope="session")
def bundle_files() -> dict[str, bytes]:
    """The files of a bundle of small networks."""
    from tests.deploy import bundles

    return bundles.contents()


@pytest.fixture(scope="session")
def bundle(bundle_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """That bundle, read from a folder."""
    from tests.deploy import bundles

    return read_bundle(bundles.write(tmp_path_factory.mktemp("bundle"), bundle_files))


@pytest.fixture(scope="session")
def listening() -> Callable[[int], dict[str, str]]:
    """A function from a process id to the listening addresses of the process and its descendants, with their programs."""

    def look(pid: int) -> dict[str, str]:
        listeners = {}
        for process in (psutil.Process(pid), *below(pid)):
            with contextlib.suppress(psutil.Error):
                for socket in process.net_connections(kind="inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        listeners[f"{socket.laddr.ip} {socket.laddr.port}"] = process.name()
        return listeners

    return look


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """A Ray cluster with two CPUs on any machine. Each test module has its own cluster."""
    import ray

    from cpgan_ray.distributed.cluster import on_loopback, only_needed_processes

    before = os.environ.copy()
    with on_loopback(), only_needed_processes():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")  # pyright: ignore[reportArgumentType]
    yield
    ray.shutdown(wait_for_processes=True)
    os.environ.clear()
    os.environ.update(before)
