"""Tests of picture similarity against scikit-image, of its input checks, and of the wrapped metric against published numbers."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from cpgan_ray.evaluation.similarity import MAX_PSNR, MS_SSIM_WEIGHTS, as_unit, legacy_mse, num_scales, similarity

torch.set_num_threads(1)

DATA = Path(os.environ.get("CPGAN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
HALF_WINDOW = 5


def pair(*, num: int = 4, shape: tuple[int, int, int] = (3, 40, 33), noise: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy and clean smooth random pictures (N, C, H, W) in [0, 1], float64."""
    rng = np.random.default_rng(seed)
    clean = gaussian_filter(rng.normal(size=(num, *shape)), (0, 0, 3, 3))
    clean = (clean - clean.min()) / (clean.max() - clean.min())
    noisy = np.clip(clean + noise * rng.normal(size=clean.shape), 0, 1)
    return torch.from_numpy(noisy), torch.from_numpy(clean)


def reference_ssim(noisy: np.ndarray, clean: np.ndarray) -> float:
    """SSIM by scikit-image of pictures (C, H, W) that are padded by half a window on all sides.

    scikit-image excludes half a window at the border from the mean, which is the padding here. torchmetrics takes the mean over the
    whole picture, with mirrored pixels beyond the border, so the padding mirrors the picture.
    """
    noisy, clean = (np.pad(p, [(0, 0), *[(HALF_WINDOW, HALF_WINDOW)] * 2], mode="reflect") for p in (noisy, clean))
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": 0}
    return float(structural_similarity(noisy, clean, **how))


def contrast(noisy: np.ndarray, clean: np.ndarray) -> float:
    """Mean of SSIM's second factor (2 cov + c) / (var + var + c), c = 0.03^2, over windows inside the pictures (C, H, W)."""

    def local(values: np.ndarray) -> np.ndarray:
        inside = slice(HALF_WINDOW, -HALF_WINDOW)
        return gaussian_filter(values, (0, 1.5, 1.5), truncate=3.5)[:, inside, inside]

    covariance = local(noisy * clean) - local(noisy) * local(clean)
    variances = sum(local(p * p) - local(p) ** 2 for p in (noisy, clean))
    return float(((2 * covariance + 0.03**2) / (variances + 0.03**2)).mean())


def halved(pictures: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels of (C, H, W)."""
    channels, height, width = pictures.shape
    even = pictures[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(channels, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


def reference_ms_ssim(noisy: np.ndarray, clean: np.ndarray, *, scales: int) -> float:
    """Product of the contrasts of all scales but the last and of the SSIM of the last, each to the power of its weight."""
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    factors = []
    for _ in range(scales - 1):
        factors.append(contrast(noisy, clean))
        noisy, clean = halved(noisy), halved(clean)
    return float(np.prod(np.maximum([*factors, reference_ssim(noisy, clean)], 0) ** weights))


@pytest.mark.parametrize("shape", [(3, 40, 33), (1, 28, 28), (1, 11, 11)])
def test_similarity_psnr_and_ssim_match_scikit_image(shape):
    noisy, clean = pair(shape=shape)
    measures = similarity(noisy, clean)
    expected = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(noisy.numpy(), clean.numpy(), strict=True)]
    assert measures["psnr"] == pytest.approx(expected, abs=1e-6)
    expected = [reference_ssim(a, b) for a, b in zip(noisy.numpy(), clean.numpy(), strict=True)]
    assert measures["ssim"] == pytest.approx(expected, abs=1e-6)
    assert np.ptp(expected) > 1e-3, "the pictures should have different SSIM"
    single = similarity(noisy.float(), clean.float())
    assert all(single[name] == pytest.approx(measures[name], abs=1e-3) for name in measures)


@pytest.mark.parametrize(("shape", "scales"), [((1, 28, 28), 2), ((3, 64, 71), 3), ((3, 112, 112), 4)])
def test_similarity_ms_ssim_matches_scale_by_scale_reference(shape, scales):
    noisy, clean = pair(shape=shape, num=2)
    expected = [reference_ms_ssim(a, b, scales=scales) for a, b in zip(noisy.numpy(), clean.numpy(), strict=True)]
    assert similarity(noisy, clean)["ms_ssim"] == pytest.approx(expected, abs=1e-6)


def test_similarity_ms_ssim_of_large_picture_matches_torchmetrics():
    """Wang's weights sum to 1.0001; we divide by this sum."""
    noisy, clean = (p.float() for p in pair(shape=(3, 200, 180), num=2))
    expected = multiscale_structural_similarity_index_measure(noisy, clean, data_range=1.0, reduction="none", normalize="relu")
    assert similarity(noisy, clean)["ms_ssim"] == pytest.approx(expected.numpy(), rel=1e-4)


def test_similarity_is_maximal_for_equal_and_falls_with_noise():
    levels = [similarity(*pair(shape=(3, 64, 64), num=2, noise=noise)) for noise in (0.0, 0.02, 0.05, 0.1, 0.2)]
    assert (levels[0]["psnr"] == MAX_PSNR).all()
    for name in ("ssim", "ms_ssim"):
        assert levels[0][name] == pytest.approx(np.ones(2), abs=1e-9)
    for name in ("psnr", "ssim", "ms_ssim"):
        assert (np.diff([level[name] for level in levels], axis=0) < -1e-3).all(), name


def test_similarity_of_picture_does_not_depend_on_batch():
    noisy, clean = pair(shape=(3, 28, 28))
    together = similarity(noisy, clean)
    for i in range(len(noisy)):
        alone = similarity(noisy[i : i + 1], clean[i : i + 1])
        assert {name: value.item() for name, value in alone.items()} == pytest.approx({n: v[i] for n, v in together.items()})


@pytest.mark.parametrize(
    ("side", "scales"), [(8, 1), (21, 1), (22, 2), (28, 2), (64, 3), (112, 4), (175, 4), (176, 5), (200, 5), (900, 5)]
)
def test_num_scales_by_side(side, scales):
    assert num_scales(side) == scales


@pytest.mark.parametrize("side", [6, 10, 11, 21, 22, 43, 44, 87, 88, 90, 98, 99, 175, 176])
def test_similarity_supports_every_size(side):
    measures = similarity(*pair(shape=(1, side, side + 3), num=1))
    assert measures.keys() == {"psnr"} | ({"ssim"} if side >= 11 else set()) | ({"ms_ssim"} if side >= 22 else set())
    assert all(np.isfinite(value).all() and value.shape == (1,) for value in measures.values())


GOOD = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MISTAKES = {
    "uint8": ((GOOD * 255).to(torch.uint8), "uint8"),
    "integers": ((GOOD * 255).long(), "int64"),
    "0 to 255": (GOOD * 255, "scale them to"),
    "a little beyond": (GOOD * 1.01 + 0.01, "scale them to"),
    "-1 to 1": (2 * GOOD - 1, r"scale them to \[0, 1\]"),
    "not a number": (torch.where(GOOD > 0.99, torch.nan, GOOD), "nan"),
    "one picture": (GOOD[0], r"\(3, 16, 16\)"),
    "flat": (GOOD.flatten(1), r"\(2, 768\)"),
    "fewer": (GOOD[:1], r"\(1, 3, 16, 16\)"),
    "channels last": (GOOD.permute(0, 2, 3, 1), r"\(2, 16, 16, 3\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_similarity_bad_type_range_or_shape_raises(mistake):
    pictures, message = MISTAKES[mistake]
    for given in ((pictures, GOOD), (GOOD, pictures)):
        with pytest.raises(ValueError, match=message):
            similarity(*given)


def test_similarity_pictures_divided_by_255_twice_raise():
    with pytest.raises(ValueError, match="divided by 255 twice"):
        similarity(GOOD / 255, GOOD / 255)
    similarity(GOOD / 255, torch.zeros_like(GOOD))  # a black picture is allowed


def test_similarity_without_batch_axis_raises():
    with pytest.raises(ValueError, match=r"both must be the same \(N, C, H, W\)"):
        similarity(GOOD[0], GOOD[0])


@pytest.mark.parametrize("mistake", ["uint8", "integers", "0 to 255", "a little beyond", "not a number", "one picture", "flat"])
def test_as_unit_bad_pictures_raise(mistake):
    with pytest.raises(ValueError, match=MISTAKES[mistake][1]):
        as_unit(MISTAKES[mistake][0])


def test_as_unit_scales_to_0_1_channels_first():
    pictures = torch.linspace(-1, 1, 2 * 4 * 5 * 3).view(2, 4, 5, 3)
    unit = as_unit(pictures)
    assert unit.shape == (2, 3, 4, 5)
    assert float(unit[1, 2, 3, 0]) == pytest.approx((float(pictures[1, 3, 0, 2]) + 1) / 2, abs=1e-6)
    assert (float(unit.min()), float(unit.max())) == (0, 1)


def wrapped(noisy: np.ndarray, clean: np.ndarray) -> float:
    """The reference implementation's metric of values 0-255 (N, ...)."""
    tensors = (torch.from_numpy(v.reshape(len(v), 1, 1, -1).astype(np.float32) / 255) for v in (noisy, clean))
    return float(legacy_mse(*tensors).mean())


def test_legacy_mse_of_all_values_is_its_ceiling():
    values = np.arange(256)
    assert wrapped(values[None], np.zeros((1, 256))) == 105.5
    assert wrapped(np.array([[16, 32, 240]]), np.zeros((1, 3))) == 0, "it is not a distance: multiples of 16 count as zero"


@pytest.mark.parametrize(("sigma", "expected"), [(4, 16.06), (8, 49.2), (16, 80.4), (32, 98.9), (64, 105.4)])
def test_legacy_mse_of_gaussian_error_matches_simulation(sigma, expected):
    """From sigma 32 on it approaches 105.5 for any error."""
    error = np.rint(np.random.default_rng(0).normal(scale=sigma, size=(1, 1_000_000))).clip(-255, 255)
    assert wrapped(error.clip(min=0), (-error).clip(min=0)) == pytest.approx(expected, rel=0.005)


def test_legacy_mse_truncates_like_uint8_cast():
    assert wrapped(np.array([[7.9, 7.9]]), np.array([[7.0, 4.1]])) == (0 + 9) / 2


def laplace_noise(pictures: np.ndarray, *, scale: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (pictures + rng.laplace(scale=scale, size=pictures.shape)).clip(0, 255)


def real(path: str) -> Path:
    if not (DATA / path).is_file():
        pytest.skip(f"no real pictures at {DATA / path}; CPGAN_DATA names the folder that holds {path}")
    return DATA / path


def test_legacy_mse_of_noisy_mnist_matches_published():
    """9.258 in the reference implementation's noise.csv; without wrapping it would be 10.37."""
    with np.load(real("mnist/mnist.npz")) as stored:
        x = stored["x_test"]
    noisy = laplace_noise(x, scale=6.375 * 0.5)
    assert wrapped(noisy, x) == pytest.approx(9.26, rel=0.01)
    assert np.square(np.floor(noisy) - x).mean() == pytest.approx(10.37, rel=0.01)


@pytest.fixture(scope="module")
def genki() -> tuple[np.ndarray, np.ndarray]:
    """Pictures of the training and of the test split, uint8 (N, 64, 64, 3)."""
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(real("genki4k/genki4k_64.parquet"), columns=["image", "split"])
    images = np.stack([np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")) for blob in table["image"].to_pylist()])
    test = np.array(table["split"].to_pylist()) == "test"
    return images[~test], images[test]


def test_legacy_mse_of_noisy_genki_matches_published(genki):
    """49.58 in the reference implementation's noise.csv; without wrapping it would be 108.7."""
    x = genki[1][::2]
    noisy = laplace_noise(x, scale=15 * 0.5)
    assert wrapped(noisy, x) == pytest.approx(49.6, rel=0.01)
    assert np.square(np.floor(noisy) - x).mean() == pytest.approx(108.7, rel=0.01)


def test_legacy_mse_of_genki_mean_picture_is_at_ceiling(genki):
    train, test = genki
    mean = np.broadcast_to(train.mean(axis=0), test.shape)
    assert wrapped(mean, test) == pytest.approx(105.52, abs=0.01)
    assert np.square(mean - test).mean() == pytest.approx(3083.2, abs=0.1)
