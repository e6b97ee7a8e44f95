"""Shared fixtures: a bundle of small networks, in a folder."""

import pytest

from cpgan_ray.deploy.bundle import Bundle, read_bundle
from tests.deploy import bundles


@pytest.fixture(scope="session")
def bundle_files() -> dict[str, bytes]:
    return bundles.contents()


@pytest.fixture(scope="session")
def bundle(bundle_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(bundles.write(tmp_path_factory.mktemp("bundle"), bundle_files))
