"""pin_images.py writes the digests of a registry into the files, and fails without changes if a reply is not usable."""

import base64
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from cluster import pin_images
from tests.cluster.checks import OVERLAYS, kubectl
from tests.cluster.servers import Response, serving

ROOT = Path(__file__).parents[2]
INDEX = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}).encode()
DIGEST = f"sha256:{hashlib.sha256(INDEX).hexdigest()}"
TOKEN = json.dumps({"token": "read-only"}).encode()
CHALLENGE: Response = (401, {"WWW-Authenticate": 'Bearer realm="http://{address}/token",service="registry"'}, b"{}")


def manifest(body: bytes = INDEX, digest: str = DIGEST) -> Response:
    return (200, {"Docker-Content-Digest": digest}, body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of cluster/."""
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster", ignore=shutil.ignore_patterns("__pycache__", "secrets.env", ".env"))
    return tmp_path / "cluster"


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def test_references_find_every_image_with_its_version():
    images = {ref.image for ref in pin_images.references(ROOT / "cluster")}
    assert {re.sub(":.*", "", image) for image in images} == {"python", "postgres", "cpgan_ray", "REGISTRY/cpgan_ray"}
    assert {"cpgan_ray:0.1.0-cpu", "cpgan_ray:0.1.0-cu130"} <= images


@pytest.mark.parametrize(
    ("image", "location"),
    [
        ("postgres:17", ("registry-1.docker.io", "library/postgres", "17")),
        ("someone/tool:1", ("registry-1.docker.io", "someone/tool", "1")),
        ("ghcr.example/a/b:1.0", ("ghcr.example", "a/b", "1.0")),
        ("localhost:5000/b:1", ("localhost:5000", "b", "1")),
    ],
)
def test_locate_parses_a_name_as_an_engine_does(image, location):
    assert pin_images.locate(image) == location


def test_look_up_requests_a_token_and_computes_the_digest():
    responses = {"/v2/a/b/manifests/1": manifest(), "/token": (200, {}, TOKEN), "challenge": CHALLENGE}
    with serving(responses, authorization="Bearer read-only") as (address, seen):
        assert pin_images.look_up(f"{address}/a/b:1") == DIGEST
    assert [path.partition("?")[0] for path, _ in seen] == ["/v2/a/b/manifests/1", "/token", "/v2/a/b/manifests/1"]
    assert "scope=repository%3Aa%2Fb%3Apull" in seen[1][0]


def test_look_up_uses_the_login_of_docker(tmp_path):
    login = base64.b64encode(b"me:password").decode()
    basic: Response = (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"{}")
    with serving({"/v2/b/manifests/1": manifest(), "challenge": basic}, authorization=f"Basic {login}") as (address, _):
        with pytest.raises(pin_images.PinError, match="docker login"):
            pin_images.look_up(f"{address}/b:1")
        (tmp_path / "config.json").write_text(json.dumps({"auths": {address: {"auth": login}}}))
        assert pin_images.look_up(f"{address}/b:1") == DIGEST


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (manifest(digest="sha256:" + "0" * 64), "checksum mismatch"),
        (manifest(body=b"<html>"), "sends no manifest"),
        (manifest(body=b'{"schemaVersion": 1}'), "not a manifest"),
        ((404, {}, b""), "404"),
        ((401, {"WWW-Authenticate": 'Bearer realm="http://evil.example/token"'}, b""), "not encrypted"),
        ((401, {}, b""), "requires a login"),
    ],
)
def test_look_up_of_an_unusable_reply_raises(response, message):
    with serving({"/v2/b/manifests/1": response}) as (address, _), pytest.raises(pin_images.PinError, match=message):
        pin_images.look_up(f"{address}/b:1")


def use_registry(folder: Path, address: str) -> None:
    """Take every image of the copy from a registry, as a user does."""
    for path in [*folder.glob("*.yaml"), *folder.glob("*/*.yaml"), *folder.glob("kubernetes/*/*.yaml"), folder / "Dockerfile"]:
        text = re.sub(r"(?<=image: )(postgres|cpgan_ray)(?=:)", rf"{address}/\1", path.read_text())
        text = text.replace("newName: cpgan_ray", f"newName: {address}/cpgan_ray").replace("REGISTRY/", f"{address}/")
        path.write_text(text.replace("_IMAGE=python", f"_IMAGE={address}/python"))


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["pin_images.py", "--folder", str(folder), *flags])
    try:
        pin_images.main()
    except SystemExit as e:
        return e.code
    return None


def test_pin_writes_a_digest_for_every_image_once(folder, monkeypatch, capsys):
    tags = {"python": ["3.11.14-slim-bookworm"], "postgres": ["17.6-bookworm"], "cpgan_ray": ["0.1.0-cpu", "0.1.0-cu130"]}
    responses = {f"/v2/{name}/manifests/{tag}": manifest() for name, versions in tags.items() for tag in versions}
    with serving(responses) as (address, seen):
        use_registry(folder, address)
        assert run(monkeypatch, folder, "--check") == 1
        assert f"{address}/postgres:17.6-bookworm is not pinned: run `make pin`" in capsys.readouterr().err
        assert seen == [], "a check asks no registry"
        assert run(monkeypatch, folder) is None
        assert len(seen) == len(responses), "an image in several files is looked up once"
        assert run(monkeypatch, folder, "--check") == 0
        before = {path: path.read_text() for path in folder.rglob("*.yaml")}
        assert run(monkeypatch, folder) is None
        assert len(seen) == len(responses), "pinned images stay as they are"
        changed = INDEX + b" "
        responses |= dict.fromkeys(responses, manifest(changed, f"sha256:{hashlib.sha256(changed).hexdigest()}"))
        assert run(monkeypatch, folder, "--renew") is None
    after = {path: path.read_text() for path in folder.rglob("*.yaml")}
    assert {path.name for path in before if before[path] != after[path]} == {
        "compose.yaml", "compose.gpu.yaml", "postgres.yaml", "kustomization.yaml", "aws.yaml", "gcp.yaml",
    }  # fmt: skip
    assert {text.count(DIGEST) for text in after.values()} == {0}
    if shutil.which("kubectl"):
        (folder / "kubernetes/base/secrets.env").write_text("auth_token=x\n")
        images = {
            container["image"]
            for overlay in OVERLAYS
            for resource in kubectl(folder.parent, overlay)
            for container in containers(resource)
        }
        assert len(images) == 3
        assert [image for image in images if "@sha256:" not in image] == []


def containers(value: object) -> list[dict[str, str]]:
    """All parts of a resource that have an image."""
    if isinstance(value, dict):
        own = [value] if isinstance(value.get("image"), str) else []
        return own + [container for inner in value.values() for container in containers(inner)]
    return [container for inner in value for container in containers(inner)] if isinstance(value, list) else []


def test_pin_without_a_usable_registry_changes_nothing(folder, monkeypatch):
    with serving({}) as (address, _):
        use_registry(folder, address)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert str(run(monkeypatch, folder)).startswith("error: ")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_check_of_one_file_names_the_missing_registry(folder, monkeypatch, capsys):
    assert run(monkeypatch, folder, "--check", str(folder / "vms/aws.yaml")) == 1
    assert "write your registry instead of REGISTRY in aws.yaml" in capsys.readouterr().err
    assert "no image is named" in str(run(monkeypatch, folder, "--check", str(folder / "README.md")))
