"""A server for tests of the page: it serves the page's files and answers from codes. It records what it is sent."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.page import HEADERS, PageFile
from tests.deploy.bob import Bob
from tests.http_server import Handler, running


@dataclass
class Site:
    """What the server has received."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def serve_page(bundles: Sequence[Bundle], files: Mapping[str, PageFile]) -> Iterator[Site]:
    site = Site()
    bobs = {bundle.digest[:8]: Bob(bundle) for bundle in bundles}

    class Answering(Handler):
        def do_GET(self) -> None:
            site.paths.append(self.path)
            file = files.get(self.path)
            if file is None:
                self.reply(404, b"{}", "application/json", **HEADERS)
            else:
                self.reply(200, file.content, file.media_type, **HEADERS)

        def do_POST(self) -> None:
            body = self.body()
            site.bodies.append(body)
            bob = bobs.get(body[4:8].hex(), next(iter(bobs.values())))
            status, values = bob.reply(body, self.headers["Authorization"])
            self.reply(status, json.dumps(values).encode(), "application/json", **HEADERS)

    with running(Answering) as site.url:
        yield site
