"""Shared fixtures: the page of small bundles, in the Chromium that the machine has."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.page import page_files
from cpgan_ray.errors import InputError
from tests.deploy.page.server import Site, serve_page

CHROMIUM = "CPGAN_CHROMIUM"
"""Environment variable: the program of another Chromium."""
FAKE_CAMERA = "--use-fake-device-for-media-stream"
"""Chromium's own moving test picture, in place of a camera."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get(CHROMIUM) or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"this machine has no Chromium: install it, or name one with {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", FAKE_CAMERA])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def site(bundle: Bundle) -> Iterator[Site]:
    """The page of one bundle, served."""
    try:
        files = page_files([bundle])
    except InputError as e:
        pytest.skip(f"onnxruntime-web cannot be had: {e}")
    with serve_page([bundle], files) as served:
        yield served
