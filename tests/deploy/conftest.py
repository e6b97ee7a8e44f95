"""Shared fixtures: a bundle that a test may change, and a certificate."""

from pathlib import Path

import pytest

from tests.deploy import bundles
from tests.deploy.certificates import Certificate, self_signed


@pytest.fixture
def folder(bundle_files: dict[str, bytes], tmp_path: Path) -> Path:
    """A bundle that the test may change."""
    return bundles.write(tmp_path / "bundle", bundle_files)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("tls"))
