"""Writes behind each image in cluster/ the digest that its registry has for it, so that the same bytes are pulled every time.

    python3 cluster/pin_images.py            # `make pin`: pins what is not pinned yet
    python3 cluster/pin_images.py --renew    # looks up all images again: security updates of the same version
    python3 cluster/pin_images.py --check [FILE ...]    # exit status 1 if one of their images is not pinned; asks no registry

A digest is the SHA-256 of the manifest that the registry sends, computed here. Nothing but Python is needed; for a registry that
asks for a password, log in with `docker login` first. The project's own image has no digest before it is in a registry: write the
registry's name before `cpgan_ray` (see README.md), push, and pin. Until then the engine takes the image that was built there.
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
"""The project's own image, which its users build."""
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
"""The index of all platforms first, as an engine asks: one digest for every machine."""
TIMEOUT_S = 60
LARGEST_MANIFEST = 4 * 2**20


class PinError(Exception):
    """An image whose digest cannot be found out."""


@dataclass(frozen=True)
class Reference:
    """A place in a file that names an image."""

    file: Path
    image: str
    digest: str | None
    start: int
    end: int
    text: str
    """What stands there when the image is pinned; `{}` is the digest."""

    @property
    def is_own(self) -> bool:
        """Whether it is the project's image without a registry's name: built on the machine, and in no registry."""
        return self.image.rpartition(":")[0] == OWN

    @property
    def is_unnamed(self) -> bool:
        """Whether the registry is still the word that stands for one."""
        return self.image.startswith("REGISTRY/")

    @property
    def remedy(self) -> str:
        return (
            f"write your registry instead of REGISTRY in {self.file.name}, then run `make pin`"
            if self.is_unnamed
            else "run `make pin`"
        )


def references(folder: Path) -> Iterator[Reference]:
    """Every image that a file in cluster/ names."""
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
    """Registry, repository and tag of an image's name, as an engine reads it."""
    name, _, tag = image.rpartition(":")
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest, tag
    return "registry-1.docker.io", name if slash else f"library/{name}", tag


def look_up(image: str) -> str:
    """The digest that a registry has for an image today.

    Raises: PinError if it cannot be had.
    """
    registry, repository, tag = locate(image)
    scheme = "http" if registry.partition(":")[0] in ("127.0.0.1", "localhost") else "https"
    url = f"{scheme}://{registry}/v2/{repository}/manifests/{tag}"
    try:
        try:
            body, told = fetch(url)
        except urllib.error.HTTPError as e:
            if e.code != 401:
                raise
            body, told = fetch(url, authorization(registry, repository, e.headers.get("WWW-Authenticate", "")))
    except (OSError, ValueError, KeyError) as e:
        raise PinError(f"{image}: {registry} gives no manifest: {e}") from None
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if told not in (None, digest):
        raise PinError(f"{image}: checksum mismatch: {registry} announces {told} and sends {digest}")
    return digest


def fetch(url: str, authorization: str | None = None) -> tuple[bytes, str | None]:
    """A manifest, and the digest that the registry announces.

    Raises: ValueError for an answer that is no manifest.
    """
    request = urllib.request.Request(url, headers={"Accept": ACCEPT})
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        body = answer.read(LARGEST_MANIFEST + 1)
        content = json.loads(body)
        if len(body) > LARGEST_MANIFEST or not isinstance(content, dict) or content.get("schemaVersion") != 2:
            raise ValueError("the answer is no manifest")
        return body, answer.headers.get("Docker-Content-Digest")


def authorization(registry: str, repository: str, challenge: str) -> str:
    """What a registry wants to see: the user's login as it stands, or a token for reading one repository.

    Raises: ValueError or KeyError if it asks for something else.
    """
    login = docker_login(registry)
    kind, _, rest = challenge.partition(" ")
    if kind.lower() == "basic" and login:
        return f"Basic {login}"
    if kind.lower() != "bearer":
        raise ValueError(f"it asks for a login ({kind or 'of an unknown kind'}): run `docker login {registry}` first")
    fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = urllib.parse.urlsplit(fields["realm"])
    if realm.scheme != "https" and realm.hostname not in ("127.0.0.1", "localhost"):
        raise ValueError(f"it sends its users to {fields['realm']!r}, which is not encrypted")
    query = {"service": fields.get("service", registry), "scope": f"repository:{repository}:pull"}
    request = urllib.request.Request(f"{fields['realm']}?{urllib.parse.urlencode(query)}")
    if login:
        request.add_unredirected_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        content = json.load(answer)
    return f"Bearer {content.get('token') or content['access_token']}"


def docker_login(registry: str) -> str | None:
    """`user:password` in base64, as `docker login` left it in its configuration or in the credential helper that it names."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser()
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    host = "https://index.docker.io/v1/" if registry == "registry-1.docker.io" else registry
    if stored := config.get("auths", {}).get(host, {}).get("auth"):
        return stored
    if helper := config.get("credHelpers", {}).get(host) or config.get("credsStore"):
        asked = subprocess.run([f"docker-credential-{helper}", "get"], input=host, capture_output=True, text=True)
        if asked.returncode == 0:
            found = json.loads(asked.stdout)
            return base64.b64encode(f"{found['Username']}:{found['Secret']}".encode()).decode()
    return None


# -------------------------------------------------------------------------------------------------------------------------- files


def pin(folder: Path, *, renew: bool) -> Iterator[str]:
    """Writes digests into the files, one line for each place. Every image is looked up before the first file is written.

    Raises: PinError
    """
    places = list(references(folder))
    wanted = [place for place in places if not (place.is_own or place.is_unnamed) and (renew or place.digest is None)]
    digests = {image: look_up(image) for image in sorted({place.image for place in wanted})}
    for path in sorted({place.file for place in wanted}):
        text = path.read_text()
        for place in sorted((p for p in wanted if p.file == path), key=lambda p: p.start, reverse=True):
            text = text[: place.start] + place.text.format(digests[place.image]) + text[place.end :]
        path.write_text(text)
    for place in places:
        how = digests.get(place.image) if place in wanted else place.digest
        how = how or ("is built on this machine: no digest" if place.is_own else f"is not pinned: {place.remedy}")
        yield f"{place.file.relative_to(folder)}: {place.image} {how}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the digests of images into the files in cluster/.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--renew", action="store_true", help="look up all images again, those that have a digest included")
    choice.add_argument("--check", action="store_true", help="exit with status 1 if an image has no digest; ask no registry")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder cluster/")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="with --check: look at these files only")
    flags = parser.parse_args()
    if flags.check:
        chosen = {path.resolve() for path in flags.files}
        places = [place for place in references(flags.folder) if not chosen or place.file.resolve() in chosen]
        if missing := chosen - {place.file.resolve() for place in places}:
            sys.exit(f"error: no image is named in {', '.join(map(str, sorted(missing)))}")
        loose = [place for place in places if place.digest is None and not place.is_own]
        for place in loose:
            print(f"{place.file.relative_to(flags.folder)}: {place.image} is not pinned: {place.remedy}", file=sys.stderr)
        sys.exit(1 if loose else 0)
    try:
        print("\n".join(pin(flags.folder, renew=flags.renew)))
    except PinError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
