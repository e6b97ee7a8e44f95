"""Tests of the projection: quality compared with numpy's SVD, exact residuals, augmented pictures, and the cache."""

import numpy as np
import pytest
import torch

from cpgan_ray.data import pca as module
from cpgan_ray.data.batching import Batch, batch, pictures
from cpgan_ray.data.pca import projection, scale, targets


def smooth(num_rows: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Pictures with a falling spectrum, brighter on the left."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(int(np.prod(shape)), 30)))[0] * np.geomspace(400, 5, 30)
    flat = rng.normal(size=(num_rows, 30)) @ basis.T + 128 + rng.normal(size=(num_rows, int(np.prod(shape))))
    return np.clip(flat.reshape(num_rows, *shape) + np.linspace(20, -20, shape[1])[:, None], 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: small matrices gain nothing from threads, and become slower if other processes compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[(9, 8, 3), (8, 7, 3)], ids=["even width", "odd width"])
def data(request, tmp_path, make_store):
    images = smooth(300, request.param)
    return make_store(tmp_path / "store", images=images)[0], images[:210]


def test_basis_is_as_good_as_the_singular_vectors(data):
    dataset, images = data
    basis = projection(dataset, components=20, progress=False)
    with_mirror_images = np.concatenate([scale(images), scale(images[:, :, ::-1])]).astype(np.float64)
    np.testing.assert_allclose(basis.mean, with_mirror_images.mean(axis=0), atol=1e-6)
    with_mirror_images -= with_mirror_images.mean(axis=0)
    values = np.linalg.svd(with_mirror_images, compute_uv=False) ** 2 / len(with_mirror_images)
    assert basis.total_variance == pytest.approx(values.sum(), rel=1e-5)
    assert basis.residual.mean() == pytest.approx(values[20:].sum(), abs=0.01 * values.sum())
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(20), atol=1e-5)
    variances = (np.asarray(basis.coordinates) ** 2).mean(axis=0)
    np.testing.assert_allclose(variances, values[:20], rtol=0.02)


def test_coordinates_and_residual_add_up_to_the_picture(data):
    dataset, images = data
    basis = projection(dataset, components=12, progress=False)
    x = scale(images)
    np.testing.assert_allclose(basis.coordinates, basis.project(x), atol=1e-4)
    energy = ((x - basis.mean).astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose((basis.coordinates**2).sum(axis=1) + basis.residual, energy, atol=1e-3)
    rebuilt = basis.reconstruct(np.asarray(basis.coordinates))
    np.testing.assert_allclose(((x - rebuilt) ** 2).sum(axis=1), basis.residual, atol=1e-3)
    assert basis.mean.dtype == basis.components.dtype == basis.coordinates.dtype == basis.residual.dtype == np.float32


def test_components_are_even_or_odd(data):
    dataset, _ = data
    basis = projection(dataset, components=20, progress=False)
    flipped = basis.components.reshape(20, *dataset.image_shape)[:, :, ::-1].reshape(20, -1)
    np.testing.assert_allclose(flipped, basis.parity[:, None] * basis.components, atol=1e-6)
    assert set(basis.parity.tolist()) == {1, -1}


@pytest.mark.parametrize("shift", [0, 2])
def test_targets_match_the_augmented_pictures(data, shift):
    dataset, _ = data
    basis = projection(dataset, components=12, progress=False)
    batch_drawn = batch(0, seed=0, num_rows=len(dataset.train), batch_size=64, mirror=True, shift=shift)
    coordinates, residual = targets(basis, dataset.train, batch_drawn)
    x = scale(pictures(dataset.train, batch_drawn))
    np.testing.assert_allclose(coordinates, basis.project(x), atol=1e-4)
    np.testing.assert_allclose((coordinates**2).sum(axis=1) + residual, ((x - basis.mean) ** 2).sum(axis=1), atol=1e-3)
    assert coordinates.dtype == residual.dtype == np.float32


def test_targets_do_not_change_the_cached_coordinates(data):
    dataset, _ = data
    basis = projection(dataset, components=5, progress=False)
    before = np.array(basis.coordinates)
    rows = np.arange(10)
    coordinates, _ = targets(basis, dataset.train, Batch(rows=rows, mirrored=np.ones(10, bool), shift=np.zeros((10, 2), np.int16)))
    coordinates += 1
    np.testing.assert_array_equal(basis.coordinates, before)


def test_projection_is_cached_and_reused(data, monkeypatch):
    dataset, _ = data
    first = projection(dataset, components=12, progress=False)
    assert isinstance(first.coordinates, np.memmap)
    monkeypatch.setattr(module, "_compute", None)
    repeated = projection(dataset, components=12, progress=False)
    np.testing.assert_array_equal(first.components, repeated.components)
    assert repeated.total_variance == first.total_variance
    assert (dataset.folder / "projection-12" / "coordinates.npy").is_file()


def test_interrupted_projection_is_computed_again(data, monkeypatch):
    dataset, _ = data
    with monkeypatch.context() as patch:
        patch.setattr(module, "_principal", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            projection(dataset, components=12, progress=False)
    assert not (dataset.folder / "projection-12").exists()
    assert projection(dataset, components=12, progress=False).coordinates.shape == (210, 12)


def test_projection_in_blocks_is_the_same(data, monkeypatch):
    dataset, _ = data
    expected = projection(dataset, components=12, progress=False)
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 9 * 8 * 3 * 10)
    blocks = projection(dataset, components=11, progress=False)
    np.testing.assert_allclose(np.abs(blocks.coordinates), np.abs(expected.coordinates[:, :11]), atol=2e-2)


@pytest.mark.parametrize(("shape", "num_rows", "expected"), [((2, 3, 3), 100, 18), ((8, 8, 3), 20, 14), ((4, 1, 3), 100, 12)])
def test_projection_has_at_most_as_many_components_as_rows_or_pixels(tmp_path, make_store, shape, num_rows, expected):
    dataset, images, _ = make_store(tmp_path / "store", images=smooth(num_rows, shape) if np.prod(shape) > 30 else None,
                                    num_rows=num_rows, image_shape=shape)  # fmt: skip
    basis = projection(dataset, components=50, progress=False)
    assert basis.components.shape == (expected, np.prod(shape))
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(expected), atol=1e-5)
    if expected == np.prod(shape):
        np.testing.assert_allclose(basis.residual, 0, atol=1e-3)
        x = scale(images[: len(dataset.train)])
        np.testing.assert_allclose(basis.reconstruct(basis.project(x)), x, atol=1e-4)


def test_projection_of_sampled_rows_has_coordinates_for_all_rows(data, monkeypatch):
    dataset, _ = data
    monkeypatch.setattr(module, "SAMPLE_ROWS", 100)
    basis = projection(dataset, components=12, progress=False)
    assert basis.coordinates.shape == (210, 12)
    assert 0 < basis.residual.mean() < 0.5 * basis.total_variance
