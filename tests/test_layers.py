"""Imports run one way, from floor to lower floor; `--help` is answered, and a player begins, without libraries of no use to it."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cpgan_ray.data import load

ROOT = Path(__file__).parents[1]
PACKAGE = "cpgan_ray"

FLOORS = (
    {"common", "config", "presets", "space", "messages", "errors", "credentials", "metrics", "streams"},
    {"objectives", "nets", "data", "theory", "process", "checkpoint"},
    {"adversaries", "privatizer"},
    {"workers"},
    {"game", "evaluation", "frontier", "mechanisms"},
    {
        "actors",
        "parallel",
        "search",
        "tracking",
        "cli",
        "judging",
        "training",
        "audit",
        "bench",
        "devtools",
        "chaos",
        "survey",
        "comparison",
        "published",
        "theory_figure",
        "reproduction",
    },
)
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
HOMES = {"ray": {"actors", "parallel", "search", "bench", "chaos"}, "mlflow": {"tracking"}}
"""Libraries and the only modules that may import them."""

MODULES = sorted(p.relative_to(ROOT) for p in (ROOT / PACKAGE).rglob("*.py"))
JOBS = sorted(p.relative_to(ROOT) for p in (ROOT / "jobs").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports, wherever in the file: of `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ".".join(path.parts[: len(path.parts) - node.level])
                base = f"{above}.{base}".rstrip(".")
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str]) -> set[str]:
    """The modules and packages of ours, directly below the top, among imported names."""
    found = {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")}
    return {name for name in found if list((ROOT / PACKAGE).glob(f"{name}*"))}


def member(path: Path) -> str:
    """The module or package of ours that a file belongs to."""
    return path.parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_imports_only_from_its_own_floor_and_those_below(path):
    if path == Path(PACKAGE, "__init__.py"):
        assert own(imported(path)) == set(), "the package itself imports nothing, or `import cpgan_ray.config` would bring it"
        return
    assert member(path) in FLOOR, f"{path} has no floor: give it one here"
    above = {name for name in own(imported(path)) if FLOOR.get(name, len(FLOORS)) > FLOOR[member(path)]}
    assert above == set(), f"{path} is on floor {FLOOR[member(path)]}; {', '.join(sorted(above))} on a higher one"


@pytest.mark.parametrize("path", MODULES, ids=str)
@pytest.mark.parametrize("library", HOMES)
def test_ray_and_mlflow_are_imported_in_their_own_modules_alone(path, library):
    uses = any(name.split(".")[0] == library for name in imported(path))
    assert not uses or member(path) in HOMES[library]


@pytest.mark.parametrize("path", [p for p in MODULES if member(p) in ("config", "presets", "cli", "errors")], ids=str)
def test_what_parses_a_command_line_imports_no_heavy_library(path):
    assert {name.split(".")[0] for name in imported(path)} & {"torch", "ray", "mlflow", "numpy"} == set()


@pytest.mark.parametrize("path", JOBS, ids=str)
def test_help_is_answered_at_once_without_torch_ray_or_mlflow(path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-X", "importtime", str(ROOT / path), "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.returncode == 0, ran.stderr
    assert "usage:" in ran.stdout
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in ran.stderr.splitlines() if line.startswith("import time:")}
    assert "tyro" in loaded
    assert loaded & {"torch", "ray", "mlflow"} == set()
    assert after.ru_utime - before.ru_utime < 4, "CPU seconds: the wall clock of a busy machine says little"


def test_help_names_every_preset_and_shows_the_chosen_ones_values():
    command = [sys.executable, str(ROOT / "jobs" / "train_celeba.py")]
    ran = subprocess.run([*command, "smoke", "--help"], capture_output=True, text=True, check=True)
    assert "smoke, faces, celeba, celeba_single, celeba_paper" in " ".join(ran.stdout.split())
    assert "Values shown are those of smoke" in " ".join(ran.stdout.split())
    assert "--adversaries.decoder.width" in ran.stdout


def test_a_player_and_an_attack_begin_without_what_they_have_no_use_for(tiny_config):
    """Every actor and every attack on Ray is a process, and pays for what it imports before it computes."""
    store = load(tiny_config).folder / "train.arrow"
    code = f"""
import sys
from pathlib import Path
from cpgan_ray.actors import players, tasks
from cpgan_ray.data.store.dataset import open_split
from cpgan_ray.process import set_up_process
set_up_process(threads=1)
assert len(open_split(Path({str(store)!r})))
print(*sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {*ran.stdout.split()}
    assert {"torch", "ray", "pyarrow"} <= loaded
    assert (
        loaded & {"torch._dynamo", "torch._inductor", "pandas", "sklearn", "scipy.stats", "torchmetrics", "matplotlib", "mlflow"}
        == set()
    )
