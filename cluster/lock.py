"""Write the lock files again: every package with its version and the checksums of all its files.

    make lock                                   # new dependencies in pyproject.toml; locked versions stay as they are
    make lock LOCK_FLAGS='--upgrade'            # the newest versions that pyproject.toml allows

Needs `uv`, which `make lock` installs in a folder of its own. pip installs from these files with `--require-hashes --no-deps`: it
refuses a file whose checksum is not in the lock, whichever index sent it, and installs no other package.

    requirements.lock           packages to run the project, including MLflow's server and the tools that build the package
    requirements-torch.lock     torch: its builds on the default index, and its build for CPUs on an index of its own
    requirements-cuda.lock      libraries that torch's build for CUDA needs; its build for CPUs needs none
    requirements-dev.lock       further packages for tests and checks
    cluster/vms/{aws,gcp}.lock  further packages for Ray's autoscaler on virtual machines
"""

import argparse
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CLOUDS = {"aws": "boto3>=1.40", "gcp": "google-api-python-client>=2"}
CUDA = ("cuda-", "nvidia-", "triton")
"""How the names of torch's libraries for CUDA begin."""
BUILD = ("hatchling", "editables")
"""Tools that build the package. pip also takes them from the lock, not from an environment of its own (`--no-build-isolation`)."""
FILES = {
    "requirements.lock": "Packages to run the project, including MLflow's server and the tools that build the package.",
    "requirements-torch.lock": "torch: its builds on the default index, and its build for CPUs (+cpu) on an index of its own.",
    "requirements-cuda.lock": "Libraries that torch's build for CUDA needs; its build for CPUs needs none.",
    "requirements-dev.lock": "Packages for tests and checks, in addition to requirements.lock.",
    "cluster/vms/aws.lock": "Packages for Ray's autoscaler on AWS, in addition to requirements.lock.",
    "cluster/vms/gcp.lock": "Packages for Ray's autoscaler on GCP, in addition to requirements.lock.",
}
HEADER = "# {purpose}\n# Written by `make lock`, installed with `pip install --require-hashes --no-deps`.\n"


@dataclass(frozen=True)
class Package:
    """One requirement of a lock file: `name==version [; marker]`, and the checksums of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        marker = f" ; {self.marker}" if self.marker else ""
        return " \\\n    ".join([f"{self.name}=={self.version}{marker}", *(f"--hash=sha256:{digest}" for digest in self.hashes)])


Packages = dict[str, Package]


def parse(text: str) -> Packages:
    """The packages of a lock file by name.

    Raises: ValueError if a line is not a requirement with `==` and checksums.
    """
    packages = Packages()
    for line in re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines():
        match = re.fullmatch(r"([\w.-]+)==([\w.+!-]+)\s*(?:;\s*(.*?)\s*)?((?:\s*--hash=sha256:[0-9a-f]{64})+)\s*", line)
        if match is None:
            raise ValueError(f"no requirement with == and checksums: {line[:80]!r}")
        name, version, marker, hashes = match.groups()
        packages[name] = Package(name, version, marker or "", tuple(sorted(re.findall(r"[0-9a-f]{64}", hashes))))
    return packages


def render(name: str, packages: Packages) -> str:
    """A lock file's text."""
    return HEADER.format(purpose=FILES[name]) + "".join(f"{packages[key]}\n" for key in sorted(packages))


def split(everything: Packages, run: Packages, clouds: dict[str, Packages]) -> dict[str, Packages]:
    """The packages of each lock file. Torch's libraries for CUDA are known by their names, and are for Linux only."""
    cuda = {name for name, p in everything.items() if name.startswith(CUDA) and "sys_platform == 'linux'" in p.marker}
    without_torch = {name: package for name, package in run.items() if name != "torch" and name not in cuda}
    files = {
        "requirements.lock": without_torch,
        "requirements-torch.lock": {"torch": everything["torch"]},
        "requirements-cuda.lock": {name: everything[name] for name in cuda},
        "requirements-dev.lock": {name: p for name, p in everything.items() if name not in run},
    }
    return files | {
        f"cluster/vms/{cloud}.lock": {n: p for n, p in packages.items() if n not in run} for cloud, packages in clouds.items()
    }


def resolve(folder: Path, pins: Packages, *, extras: tuple[str, ...] = (), more: tuple[str, ...] = (), upgrade: bool) -> Packages:
    """The packages that pyproject.toml and further requirements need, on every platform. Locked versions stay if still allowed."""
    (folder / "more.in").write_text("\n".join([*BUILD, *more]) + "\n")
    (folder / "out.lock").write_text("".join(f"{package}\n" for package in pins.values()))
    command = ["uv", "pip", "compile", "--quiet", "--no-config", "--python-version", "3.11", "--universal", "--generate-hashes"]
    command += ["--no-annotate", "--no-header", "--no-emit-index-url", *(f"--extra={extra}" for extra in extras)]
    command += ["--upgrade"] if upgrade else []
    command += ["--output-file", str(folder / "out.lock"), str(ROOT / "pyproject.toml"), str(folder / "more.in")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return parse((folder / "out.lock").read_text())


def cpu_hashes(index: str, version: str, old: Packages) -> tuple[str, ...]:
    """Checksums of torch's builds for CPUs, from an index of their own; if it does not reply, the checksums in the old lock.

    Raises: ValueError if it does not reply and the old lock has no checksums of this version.
    """
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=60) as response:
            page = response.read().decode()
        file = rf"torch-{re.escape(version)}(?:%2B|\+)cpu-[^\"#]*\.whl#sha256=([0-9a-f]{{64}})"
        hashes = tuple(re.findall(file, page))
        if not hashes:
            raise ValueError(f"{index} has no torch {version}+cpu")
        return hashes
    except (urllib.error.URLError, TimeoutError) as e:
        if "torch" not in old or old["torch"].version != version:
            raise ValueError(f"{index} does not reply ({e}), and the lock has no checksum of torch {version}+cpu") from None
        print(f"{index} does not reply: the checksums of torch {version}+cpu stay as they are", file=sys.stderr)
        return old["torch"].hashes


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the lock files again.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    parser.add_argument("--cpu-index", default=CPU_INDEX, help="index that has torch's builds for CPUs")
    flags = parser.parse_args()
    old = {name: parse((ROOT / name).read_text()) if (ROOT / name).exists() else {} for name in FILES}
    pins = {name: package for packages in old.values() for name, package in packages.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        everything = resolve(folder, pins, extras=("server", "deploy", "dev"), upgrade=flags.upgrade)
        run = resolve(folder, everything, extras=("server", "deploy"), upgrade=False)
        clouds = {
            cloud: resolve(
                folder, everything | old[f"cluster/vms/{cloud}.lock"], extras=("server", "deploy"), more=(need,), upgrade=False
            )
            for cloud, need in CLOUDS.items()
        }
    new = split(everything, run, clouds)
    torch = new["requirements-torch.lock"]["torch"]
    hashes = {*torch.hashes, *cpu_hashes(flags.cpu_index, torch.version, old["requirements-torch.lock"])}
    new["requirements-torch.lock"]["torch"] = Package("torch", torch.version, torch.marker, tuple(sorted(hashes)))
    for name, packages in new.items():
        (ROOT / name).write_text(render(name, packages))
        print(f"{name}: {len(packages)} packages")


if __name__ == "__main__":
    try:
        main()
    except ValueError as e:
        sys.exit(f"error: {e}")
    except subprocess.CalledProcessError as e:
        sys.exit(e.returncode)
