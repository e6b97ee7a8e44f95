"""Write the digest of each image into the files in cluster/, so that the same bytes are pulled every time.

    python3 cluster/pin_images.py            # `make pin`: pins what is not pinned yet
    python3 cluster/pin_images.py --renew    # looks up all images again: security updates of the same version
    python3 cluster/pin_images.py --check [FILE ...]    # exit status 1 if an image in them is not pinned; asks no registry

A digest is the SHA-256 of the manifest that the registry sends, computed here. Only Python is needed; if a registry requires a
password, run `docker login` first. The project's own image has no digest until it is in a registry: write the registry's name
before `cpgan_ray` (see README.md), push, and pin. Until then the engine uses the image that was built on its machine.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
OWN = "cpgan_ray"
"""The project's own image, which users build themselves."""
PATTERNS = ("Dockerfile", "*.yaml", "kubernetes/**/*.yaml", "vms/*.yaml")
IMAGE = r"(?P<image>[\w./:-]+?:[\w.-]+)(?P<digest>@sha256:[0-9a-f]{64})?"
REFERENCES = (
    re.compile(rf"^ARG \w+_IMAGE={IMAGE}$", re.MULTILINE),
    re.compile(rf"^[ -]*(?:\w+_)?image: {IMAGE}(?= *$| +#)", re.MULTILINE),
)
KUSTOMIZED = re.compile(
    r"^(?P<indent> *)newName: (?P<name>\S+)\n *newTag: (?P<tag>[\w.-]+)(?P<pin>\n *digest: (?P<digest>sha256:[0-9a-f]{64}))?$",
    re.MULTILINE,
)
ACCEPT = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)
"""The index of all platforms comes first, as in the request of an engine: one digest for every machine."""
TIMEOUT_S = 60
MAX_MANIFEST_BYTES = 4 * 2**20


class PinError(Exception):
    """The digest of an image cannot be determined."""


@dataclass(frozen=True)
class Reference:
    """The name of an image in a file."""

    file: Path
    image: str
    digest: str | None
    start: int
    end: int
    text: str
    """The text that replaces it when the image is pinned; `{}` is the digest."""

    @property
    def is_own(self) -> bool:
        """Whether it is the project's image without a registry's name: it is built on the machine and is in no registry."""
        return self.image.rpartition(":")[0] == OWN

    @property
    def is_unnamed(self) -> bool:
        """Whether the registry is still the placeholder REGISTRY."""
        return self.image.startswith("REGISTRY/")

    @property
    def remedy(self) -> str:
        return (
            f"write your registry instead of REGISTRY in {self.file.name}, then run `make pin`"
            if self.is_unnamed
            else "run `make pin`"
        )


def references(folder: Path) -> Iterator[Reference]:
    """Every name of an image in the files in cluster/."""
    for path in sorted({path for pattern in PATTERNS for path in folder.glob(pattern)}):
        text = path.read_text()
        for match in (match for pattern in REFERENCES for match in pattern.finditer(text)):
            image, digest = match["image"], match["digest"]
            yield Reference(path, image, digest and digest[1:], match.start("image"), match.end(), f"{image}@{{}}")
        for match in KUSTOMIZED.finditer(text):
            whole, image = match[0].removesuffix(match["pin"] or ""), f"{match['name']}:{match['tag']}"
            yield Reference(path, image, match["digest"], match.start(), match.end(), f"{whole}\n{match['indent']}digest: {{}}")


# ----------------------------------------------------------------------------------------------------------------------- registry


def locate(image: str) -> tuple[str, str, str]:
    """Registry, repository and tag of an image's name, parsed as an engine does."""
    name, _, tag = image.rpartition(":")
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest, tag
    return "registry-1.docker.io", name if slash else f"library/{name}", tag


def look_up(image: str) -> str:
    """The digest that a registry has for an image now.

    Raises: PinError if it cannot be determined.
    """
    registry, repository, tag = locate(image)
    scheme = "http" if registry.partition(":")[0] in ("127.0.0.1", "localhost") else "https"
    url = f"{scheme}://{registry}/v2/{repository}/manifests/{tag}"
    try:
        try:
            body, announced = fetch(url)
        except urllib.error.HTTPError as e:
            if e.code != 401:
                raise
            body, announced = fetch(url, authorization(registry, repository, e.headers.get("WWW-Authenticate", "")))
    except (OSError, ValueError, KeyError) as e:
        raise PinError(f"{image}: {registry} sends no manifest: {e}") from None
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if announced not in (None, digest):
        raise PinError(f"{image}: checksum mismatch: {registry} announces {announced} and sends {digest}")
    return digest


def fetch(url: str, authorization: str | None = None) -> tuple[bytes, str | None]:
    """A manifest, and the digest that the registry announces.

    Raises: ValueError if the response is not a manifest.
    """
    request = urllib.request.Request(url, headers={"Accept": ACCEPT})
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        body = response.read(MAX_MANIFEST_BYTES + 1)
        content = json.loads(body)
        if len(body) > MAX_MANIFEST_BYTES or not isinstance(content, dict) or content.get("schemaVersion") != 2:
            raise ValueError("the response is not a manifest")
        return body, response.headers.get("Docker-Content-Digest")


def authorization(registry: str, repository: str, challenge: str) -> str:
    """The Authorization header for a registry: the user's login, or a token that may read one repository.

    Raises: ValueError or KeyError if the registry requires another kind of authorization.
    """
    login = docker_login(registry)
    kind, _, rest = challenge.partition(" ")
    if kind.lower() == "basic" and login:
        return f"Basic {login}"
    if kind.lower() != "bearer":
        raise ValueError(f"it requires a login ({kind or 'of an unknown kind'}): run `docker login {registry}` first")
    fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = urllib.parse.urlsplit(fields["realm"])
    if realm.scheme != "https" and realm.hostname not in ("127.0.0.1", "localhost"):
        raise ValueError(f"it redirects logins to {fields['realm']!r}, which is not encrypted")
    query = {"service": fields.get("service", registry), "scope": f"repository:{repository}:pull"}
    request = urllib.request.Request(f"{fields['realm']}?{urllib.parse.urlencode(query)}")
    if login:
        request.add_unredirected_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        content = json.load(response)
    return f"Bearer {content.get('token') or content['access_token']}"


def docker_login(registry: str) -> str | None:
    """`user:password` in base64, from the configuration of `docker login` or from its credential helper; None if absent."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser()
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    host = "https://index.docker.io/v1/" if registry == "registry-1.docker.io" else registry
    if stored := config.get("auths", {}).get(host, {}).get("auth"):
        return stored
    if helper := config.get("credHelpers", {}).get(host) or config.get("credsStore"):
        process = subprocess.run([f"docker-credential-{helper}", "get"], input=host, capture_output=True, text=True)
        if process.returncode == 0:
            login = json.loads(process.stdout)
            return base64.b64encode(f"{login['Username']}:{login['Secret']}".encode()).decode()
    return None


# -------------------------------------------------------------------------------------------------------------------------- files


def pin(folder: Path, *, renew: bool) -> Iterator[str]:
    """Writes digests into the files and yields one line per reference. All images are looked up before the first file is written.

    Raises: PinError.
    """
    all_references = list(references(folder))
    to_pin = [ref for ref in all_references if not (ref.is_own or ref.is_unnamed) and (renew or ref.digest is None)]
    digests = {image: look_up(image) for image in sorted({ref.image for ref in to_pin})}
    for path in sorted({ref.file for ref in to_pin}):
        text = path.read_text()
        for ref in sorted((ref for ref in to_pin if ref.file == path), key=lambda ref: ref.start, reverse=True):
            text = text[: ref.start] + ref.text.format(digests[ref.image]) + text[ref.end :]
        path.write_text(text)
    for ref in all_references:
        status = digests.get(ref.image) if ref in to_pin else ref.digest
        status = status or ("is built on this machine: no digest" if ref.is_own else f"is not pinned: {ref.remedy}")
        yield f"{ref.file.relative_to(folder)}: {ref.image} {status}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the digests of images into the files in cluster/.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--renew", action="store_true", help="look up all images again, even those with a digest")
    choice.add_argument("--check", action="store_true", help="exit with status 1 if an image has no digest; ask no registry")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder cluster/")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="with --check: check only these files")
    flags = parser.parse_args()
    if flags.check:
        files = {path.resolve() for path in flags.files}
        checked = [ref for ref in references(flags.folder) if not files or ref.file.resolve() in files]
        if missing := files - {ref.file.resolve() for ref in checked}:
            sys.exit(f"error: no image is named in {', '.join(map(str, sorted(missing)))}")
        unpinned = [ref for ref in checked if ref.digest is None and not ref.is_own]
        for ref in unpinned:
            print(f"{ref.file.relative_to(flags.folder)}: {ref.image} is not pinned: {ref.remedy}", file=sys.stderr)
        sys.exit(1 if unpinned else 0)
    try:
        print("\n".join(pin(flags.folder, renew=flags.renew)))
    except PinError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
