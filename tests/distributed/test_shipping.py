"""Tests that code which is named after a connection to Ray reaches the processes of the cluster."""

import pytest
import ray

from cpgan_ray.common.plugins import Parts, shipping
from cpgan_ray.config import RuntimeConfig
from cpgan_ray.distributed.cluster import connect
from cpgan_ray.errors import InputError

THINGS = {"kind": "thing", "group": "cpgan_ray.things", "field": "section.family"}


def result_on_ray(name: str) -> int:
    from cpgan_ray.common.plugins import Parts

    return Parts({}, kind="thing", group="cpgan_ray.things", field="section.family").call(name)


@pytest.mark.slow
@pytest.mark.usefixtures("process_left_as_it_was")
def test_own_local_cluster_is_started_again_for_new_code(tmp_path, monkeypatch):
    ray.shutdown()
    monkeypatch.setattr(shipping, "_kept", {})
    monkeypatch.setattr(shipping, "_packages", set())
    for number in (1, 2):
        path = tmp_path / f"code{number}.py"
        path.write_text(f"def build():\n    return {number}\n")
        name = Parts({}, **THINGS).pin(f"{path}:build")
        path.unlink()
        connect(RuntimeConfig(backend="ray"))
        assert ray.get(ray.remote(result_on_ray).remote(name)) == number


@pytest.mark.slow
@pytest.mark.usefixtures("process_left_as_it_was")
def test_cluster_that_the_user_has_joined_is_left_alone(tmp_path, monkeypatch):
    ray.shutdown()
    monkeypatch.setattr(shipping, "_kept", {})
    connect(RuntimeConfig(backend="ray"))
    monkeypatch.setattr("cpgan_ray.distributed.cluster._started", set())
    shipping.keep("0123456789abcdef.py", b"")
    with pytest.raises(InputError, match=r"its processes do not have it: call ray\.shutdown\(\) first"):
        connect(RuntimeConfig(backend="ray"))
    assert ray.is_initialized()
