"""Shared fixtures: a bundle of small networks, in a folder."""

from pathlib import Path

import pytest

from cpgan_ray.deploy.bundle import Bundle, read_bundle
from tests.deploy import bundles
from tests.deploy.certificates import Certificate, self_signed


@pytest.fixture(scope="session")
def bundle_files() -> dict[str, bytes]:
    return bundles.contents()


@pytest.fixture(scope="session")
def bundle(bundle_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(bundles.write(tmp_path_factory.mktemp("bundle"), bundle_files))


@pytest.fixture
def folder(bundle_files: dict[str, bytes], tmp_path: Path) -> Path:
    """A bundle that the test may change."""
    return bundles.write(tmp_path / "bundle", bundle_files)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("tls"))
