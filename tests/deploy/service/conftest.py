"""Shared fixtures: a second bundle, with another digest and other weights."""

import pytest

from cpgan_ray.deploy.bundle import Bundle, read_bundle
from tests.deploy import bundles


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(bundles.write(tmp_path_factory.mktemp("other"), bundles.contents(seed=1)))
