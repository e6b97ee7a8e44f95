"""Everything that the page consists of, by the path of its URL."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.page.description import URL_NAMES, by_privacy, described
from cpgan_ray.deploy.page.faces import offered_faces
from cpgan_ray.deploy.page.runtime import fetch_runtime

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Of every file of the page. Scripts, styles and models come from the service itself, and from nowhere else."""


@dataclass(frozen=True, eq=False)
class PageFile:
    """A file of the page."""

    content: bytes
    media_type: str


def page_files(bundles: Sequence[Bundle], *, cache: Path | None = None) -> Mapping[str, PageFile]:
    """URL path -> file, for a page that shows these bundles. Bundles that take no pictures are left out.

    cache: the folder in which onnxruntime-web is kept; default: the user's cache folder.

    Raises: InputError if onnxruntime-web is not in the cache folder and cannot be fetched.
    """
    contents = static_files()
    contents |= {f"/page/ort/{name}": content for name, content in fetch_runtime(cache).items()}
    contents |= {f"/page/faces/{i}.png": content for i, content in enumerate(offered_faces())}
    entries = []
    for i, bundle in enumerate(by_privacy(bundles)):
        urls = {name: f"/page/{i}/{name}" for name in URL_NAMES if name in bundle.files}
        contents |= {url: bundle.files[name] for name, url in urls.items()}
        entries.append(described(bundle, urls=urls))
    description = {"bundles": entries, "faces": len(offered_faces())}
    contents["/page/bundles.json"] = json.dumps(description, allow_nan=False).encode()
    files = {path: PageFile(content, MEDIA_TYPES[Path(path).suffix]) for path, content in contents.items()}
    return {"/": files["/page/index.html"], **files}


def static_files() -> dict[str, bytes]:
    """The files of the package, by the path of their URL."""
    folder = resources.files("cpgan_ray.deploy.page") / "static"
    return {f"/page/{entry.name}": entry.read_bytes() for entry in folder.iterdir() if Path(entry.name).suffix in MEDIA_TYPES}
