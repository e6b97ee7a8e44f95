"""lock.py parses, splits and renders lock files, and pip refuses a file with another checksum."""

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import lock
from tests.cluster.servers import serving

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def package(name: str, version: str = "1.0", *, marker: str = "", hashes: tuple[str, ...] = (A,)) -> lock.Package:
    return lock.Package(name, version, marker, hashes)


def packages(*members: lock.Package) -> lock.Packages:
    return {member.name: member for member in members}


def test_parse_of_rendered_packages_returns_them():
    rendered = packages(package("one", hashes=(A, B)), package("two", "2.0+cpu", marker="sys_platform == 'linux'"))
    assert lock.parse(lock.render("requirements.lock", rendered)) == rendered


@pytest.mark.parametrize("line", ["one>=1.0 --hash=sha256:" + A, "one==1.0", "--index-url https://x", "one==1.0 --hash=md5:" + A])
def test_parse_of_a_line_without_checksum_raises(line):
    with pytest.raises(ValueError, match="no requirement with == and checksums"):
        lock.parse(line + "\n")


def test_split_gives_each_package_to_one_file():
    run = packages(package("ray"), package("torch"), package("nvidia-x", marker="sys_platform == 'linux'"))
    everything = run | packages(package("pytest"))
    files = lock.split(everything, run, {"aws": run | packages(package("boto3"))})
    assert {file: set(names) for file, names in files.items()} == {
        "requirements.lock": {"ray"},
        "requirements-torch.lock": {"torch"},
        "requirements-cuda.lock": {"nvidia-x"},
        "requirements-dev.lock": {"pytest"},
        "cluster/vms/aws.lock": {"boto3"},
    }


def test_cpu_hashes_are_those_of_the_version_on_the_index():
    page = "".join(
        f'<a href="/whl/torch-{version}-cp311-cp311-linux_x86_64.whl#sha256={digest}">x</a>'
        for version, digest in (("2.13.0%2Bcpu", A), ("2.13.1%2Bcpu", B), ("2.13.0%2Bcu130", C))
    )
    with serving({"/torch/": (200, {}, page.encode())}) as (address, _):
        assert lock.cpu_hashes(f"http://{address}", "2.13.0", {}) == (A,)
        with pytest.raises(ValueError, match=r"no torch 2\.14\.0\+cpu"):
            lock.cpu_hashes(f"http://{address}", "2.14.0", {})


def test_cpu_hashes_without_a_reply_stay_as_locked():
    unreachable = "http://127.0.0.1:1"
    assert lock.cpu_hashes(unreachable, "1.0", packages(package("torch", hashes=(A, B)))) == (A, B)
    with pytest.raises(ValueError, match="no checksum of torch 2.0"):
        lock.cpu_hashes(unreachable, "2.0", packages(package("torch")))


def wheel(folder: Path) -> bytes:
    """Write an empty package as a wheel into a folder; returns its bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tiny_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        archive.writestr("tiny_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_thing-1.0.dist-info/RECORD", "")
    (folder / "tiny_thing-1.0-py3-none-any.whl").write_bytes(buffer.getvalue())
    return buffer.getvalue()


def test_pip_installs_only_files_with_the_locked_checksum(tmp_path):
    good = hashlib.sha256(wheel(tmp_path)).hexdigest()
    file = tmp_path / "x.lock"
    command = [sys.executable, "-m", "pip", "--isolated", "install", "--require-hashes", "--no-deps", "--no-index", "--quiet"]
    command += ["--find-links", str(tmp_path), "--requirement", str(file), "--target"]
    outcomes = []
    for number, digest in enumerate((good, A)):
        file.write_text(lock.render("requirements.lock", packages(package("tiny-thing", hashes=(digest,)))))
        process = subprocess.run([*command, str(tmp_path / f"site{number}")], capture_output=True, text=True)
        outcomes.append((process.returncode == 0, "DO NOT MATCH THE HASHES" in process.stderr))
    assert outcomes == [(True, False), (False, True)]
