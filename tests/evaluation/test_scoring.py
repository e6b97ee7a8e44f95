"""Scores against numpy and scikit-image; intervals on data whose R2 is known; differences that only pairing finds."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, Pairs
from cpgan_ray.evaluation.scoring import RESAMPLES, RowErrors, accuracy_intervals, interval, mean_interval, paired_difference, score
from cpgan_ray.evaluation.similarity import legacy_mse, similarity
from cpgan_ray.training.adversaries.base import Target

torch.set_num_threads(1)

ROWS, SHAPE, P = 300, (12, 13, 2), 20
D = 12 * 13 * 2
COMPONENTS = torch.linalg.qr(torch.randn(D, P, generator=torch.Generator().manual_seed(0)))[0].T
MEAN = torch.linspace(-0.2, 0.4, D)
"""Of other pictures than those that are scored, as the mean training picture is."""


def drawn() -> tuple[Tensor, Tensor]:
    """Pictures (N, D) in [-1, 1], many pixels at the very ends, and what an attack believes them to be: noisy, partly beyond."""
    generator = torch.Generator().manual_seed(1)
    x = (0.6 * torch.randn(ROWS, D, generator=generator) + 0.2).clamp(-1, 1)
    return x, x + 0.3 * torch.randn(ROWS, D, generator=generator)


def attack_data(x: Tensor, codes: Tensor, *, bounded: bool = True, image_shape: tuple[int, int, int] | None = SHAPE) -> AttackData:
    """Two pictures a person."""
    pixels = x - MEAN
    values = pixels @ COMPONENTS.T
    residual = pixels.square().sum(1) - values.square().sum(1)
    pairs = Pairs(codes, Target(values, residual, D), pixels, np.arange(len(x)) // 2)
    bounds = (-1 - MEAN, 1 - MEAN) if bounded else None
    return AttackData(pairs, pairs, pairs, COMPONENTS, bounds, image_shape, seed=0, pictures=bounded)


def attack(reconstruct: Callable[[Tensor], Tensor], *, space: str = "pixels") -> Fitted:
    return Fitted(reconstruct, space, tune_r2=0.0, saturated=True, settings={})


def believed(**how) -> tuple[AttackData, Fitted, np.ndarray, np.ndarray]:
    """An attack whose codes are its reconstructions; these and the pictures, both less the mean one, in float64 numpy."""
    x, x_hat = drawn()
    fitted = attack(lambda z: z - MEAN)
    return attack_data(x, x_hat, **how), fitted, (x_hat - MEAN).double().numpy(), (x - MEAN).double().numpy()


def test_r2_and_mean_squared_errors_are_numpys():
    data, fitted, x_hat, x = believed(bounded=False)
    found, rows = score(data, fitted)
    assert rows.errors == pytest.approx(np.square(x_hat - x).mean(axis=1), rel=1e-5)
    assert rows.mean_errors == pytest.approx(np.square(x).mean(axis=1), rel=1e-5)
    assert rows.identity.tolist() == data.score.identity.tolist()
    assert found.r2 == pytest.approx(1 - np.square(x_hat - x).mean() / np.square(x).mean(), abs=1e-6)
    assert found.mse == pytest.approx(np.square(x_hat - x).mean(), rel=1e-5)
    assert found.mse_raw == pytest.approx(np.square((x_hat - x) * data.unit).mean(), rel=1e-5), "of signals"
    assert found.low < found.r2 < found.high


def test_errors_of_pictures_are_on_their_usual_scales():
    data, fitted, _, _ = believed(bounded=True)
    found, rows = score(data, fitted, similar=False)
    assert found.mse == pytest.approx(rows.errors.mean() / 4)
    assert found.mse_255 == pytest.approx(rows.errors.mean() / 4 * 255**2)
    assert found.mse_raw is None


def test_an_attack_on_components_is_scored_on_all_of_the_picture():
    """What lies outside the components is lost, and counts."""
    x, _ = drawn()
    data = attack_data(x, (x - MEAN) @ COMPONENTS.T, bounded=False)
    found, _ = score(data, attack(lambda z: z, space="components"))
    pixels, projector = ((x - MEAN).double().numpy(), (COMPONENTS.T @ COMPONENTS).double().numpy())
    assert found.r2 == pytest.approx(1 - np.square(pixels - pixels @ projector).sum() / np.square(pixels).sum(), abs=1e-5)
    assert 0 < found.r2 < 0.5


def test_reconstructions_are_clipped_and_that_never_makes_an_error_larger():
    free, bounded = (score(*believed(bounded=b)[:2])[1] for b in (False, True))
    assert (bounded.errors <= free.errors).all()
    assert (bounded.errors < 0.95 * free.errors).mean() > 0.9
    data, _, x_hat, x = believed()
    assert data.bounds is not None
    low, high = (bound.numpy() for bound in data.bounds)
    assert bounded.errors == pytest.approx(np.square(x_hat.clip(low, high) - x).mean(axis=1), rel=1e-4)


def test_likeness_is_the_mean_over_pictures():
    """300 pictures come in two blocks that are not of one size."""
    x, x_hat = (v.view(ROWS, *SHAPE).double() for v in drawn())
    one, other = (((v.clamp(-1, 1) + 1) / 2).permute(0, 3, 1, 2) for v in (x_hat, x))
    data, fitted, _, _ = believed()
    found, _ = score(data, fitted, legacy=True)
    psnr = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(one.numpy(), other.numpy(), strict=True)]
    assert found.psnr == pytest.approx(np.mean(psnr), abs=1e-3)
    assert found.ssim == pytest.approx(similarity(one, other)["ssim"].mean(), abs=1e-4)
    assert found.legacy_mse == pytest.approx(legacy_mse(one, other).mean(), rel=0.01)
    assert found.ms_ssim is None, "too small for two scales"


def test_what_is_no_picture_has_no_likeness():
    data, fitted, _, _ = believed(image_shape=None)
    for found in (score(data, fitted, legacy=True)[0], score(*believed()[:2], similar=False)[0]):
        assert (found.psnr, found.ssim, found.ms_ssim, found.legacy_mse) == (None,) * 4


def test_likeness_and_the_originals_metric_are_each_had_without_the_other():
    data, fitted, _, _ = believed()
    both, similar, legacy = (score(data, fitted, similar=s, legacy=w)[0] for s, w in ((True, True), (True, False), (False, True)))
    assert similar == dataclasses.replace(both, legacy_mse=None)
    assert legacy == dataclasses.replace(both, psnr=None, ssim=None, ms_ssim=None)
    assert None not in (both.psnr, both.ssim, both.legacy_mse)


def test_the_mean_picture_has_r2_0_and_the_picture_itself_1():
    data, _, _, _ = believed()
    nothing, _ = score(data, attack(torch.zeros_like))
    assert (nothing.r2, nothing.low, nothing.high) == (0, 0, 0)
    x, _ = drawn()
    found, _ = score(attack_data(x, x - MEAN), attack(lambda z: z), similar=False)
    assert (found.r2, found.mse) == (1, 0)


@pytest.mark.parametrize(("value", "bounded"), [(torch.nan, True), (torch.nan, False), (torch.inf, False)])
def test_a_reconstruction_that_is_not_finite_is_refused(value, bounded):
    data, fitted, _, _ = believed(bounded=bounded)
    data.score.z[ROWS - 1, 7] = value
    with pytest.raises(ValueError, match="not finite"):
        score(data, fitted)


def people_with(rng: np.random.Generator, *, people: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some people's pictures: whose each is, its variance, and how badly its person is recovered (mean 0)."""
    identity = np.repeat(np.arange(people), rng.integers(1, 9, size=people))
    variance = rng.lognormal(sigma=0.3, size=len(identity))
    return identity, variance, rng.normal(size=people)[identity]


R2 = 0.3
"""E[error] = (1 - R2) E[variance] below."""


def test_the_interval_covers_the_true_r2_as_often_as_it_says_for_people_are_what_is_resampled():
    """Rows taken for people of their own, the interval would be far too narrow: what a person's pictures share is drawn once."""
    rng = np.random.default_rng(0)
    by_person, by_row = [], []
    for seed in range(200):
        identity, variance, person = people_with(rng)
        errors = variance * (1 - R2 + 0.2 * person + 0.05 * rng.normal(size=len(identity)))
        low, high = interval(RowErrors(errors, variance, identity), seed=seed)
        by_person.append(low <= R2 <= high)
        if seed < 80:
            low, high = interval(RowErrors(errors, variance, np.arange(len(identity))), seed=seed)
            by_row.append(low <= R2 <= high)
    assert 0.9 <= np.mean(by_person) <= 0.98
    assert np.mean(by_row) < 0.75


def one_run() -> RowErrors:
    identity, variance, person = people_with(np.random.default_rng(3))
    return RowErrors(variance * (1 - R2 + 0.2 * person), variance, identity)


def test_the_interval_is_repeatable_from_its_seed_and_wider_at_a_higher_level():
    rows = one_run()
    assert interval(rows, seed=1) == interval(rows, seed=1) != interval(rows, seed=2)
    levels = [interval(rows, seed=1, level=level) for level in (0.5, 0.95, 0.99)]
    lows, highs = zip(*levels, strict=True)
    assert sorted(lows, reverse=True) == list(lows)
    assert sorted(highs) == list(highs)
    assert lows[0] < rows.r2 < highs[0]


def test_names_and_order_of_people_do_not_matter_to_the_interval():
    rows = one_run()
    renamed = RowErrors(rows.errors, rows.mean_errors, rows.identity * 7 + 1000)
    assert interval(renamed, seed=1) == interval(rows, seed=1)
    order = np.random.default_rng(0).permutation(len(rows.errors))
    shuffled = RowErrors(rows.errors[order], rows.mean_errors[order], rows.identity[order])
    assert interval(shuffled, seed=1) == pytest.approx(interval(rows, seed=1), abs=1e-12)


def test_intervals_of_accuracies_cover_the_truth_as_often_as_they_say_and_agree_with_the_means():
    """Two labels, each answered rightly for 0.9 of the zeros and 0.6 of the ones, of which there are a fifth."""
    truth, covered = np.array([0.9 * 0.8 + 0.6 * 0.2, 0.75]), np.zeros(2)
    for trial in range(100):
        rng = np.random.default_rng(trial)
        y = rng.random((400, 2)) < 0.2
        right = rng.random(y.shape) < np.where(y, 0.6, 0.9)
        people = np.arange(400) // 2
        found = accuracy_intervals(right, np.stack([~y, y], axis=2), people, seed=trial)
        covered += [np.mean((one[:, 0] <= t) & (t <= one[:, 1])) for one, t in zip(found, truth, strict=True)]
        assert found[0][1] == pytest.approx(mean_interval(right[:, 1], people, seed=trial))
    assert (covered >= 88).all() and (covered <= 99).all(), covered


def test_samples_without_one_of_the_classes_do_not_count_in_the_balanced_accuracy():
    y = np.zeros((30, 2), int)
    y[3, 1] = 1
    right = np.ones((30, 2), bool)
    plain, balanced = accuracy_intervals(right, y[:, :, None] == [0, 1], np.arange(30), seed=0)
    assert plain.tolist() == [[1, 1], [1, 1]]
    assert np.isnan(balanced[0]).all() and balanced[1].tolist() == [1, 1]


def two_runs(rng: np.random.Generator, *, better: float) -> tuple[RowErrors, RowErrors]:
    """Runs that find the same people and pictures hard, the first with `better` more R2, each with a little noise of its own."""
    identity, variance, person = people_with(rng)
    shared = 1 - R2 + 0.2 * person
    runs = [shared - gain + 0.03 * rng.normal(size=len(identity)) for gain in (better, 0.0)]
    one, other = (RowErrors(variance * errors, variance, identity) for errors in runs)
    return one, other


def test_two_equally_strong_runs_are_seldom_told_apart():
    rng = np.random.default_rng(1)
    found = [paired_difference(*two_runs(rng, better=0.0), seed=seed) for seed in range(100)]
    assert 0.88 <= np.mean([d.low <= 0 <= d.high for d in found]) <= 0.99
    assert np.mean([d.p < 0.05 for d in found]) <= 0.12
    assert 0.3 < np.mean([d.p for d in found]) < 0.7


def test_a_small_difference_is_found_that_two_intervals_would_not_show():
    rng = np.random.default_rng(2)
    for seed in range(20):
        one, other = two_runs(rng, better=0.02)
        found = paired_difference(one, other, seed=seed)
        assert found.r2 == pytest.approx(one.r2 - other.r2)
        assert 0 < found.low < found.r2 < found.high < 0.04
        assert found.p == 1 / RESAMPLES, "no resample has it the other way round"
        assert interval(one, seed=seed)[0] < other.r2 and one.r2 < interval(other, seed=seed)[1], "each is within the other's"


def test_the_difference_changes_its_sign_with_the_order_of_the_runs():
    one, other = two_runs(np.random.default_rng(4), better=0.004)
    there, back = paired_difference(one, other, seed=0), paired_difference(other, one, seed=0)
    assert (back.r2, back.low, back.high, back.p) == pytest.approx((-there.r2, -there.high, -there.low, there.p))


def test_a_run_does_not_differ_from_itself():
    rows = one_run()
    found = paired_difference(rows, rows, seed=0)
    assert (found.r2, found.low, found.high, found.p) == (0, 0, 0, 1)


DIFFERENT = {
    "fewer rows": lambda r: RowErrors(r.errors[1:], r.mean_errors[1:], r.identity[1:]),
    "other people": lambda r: RowErrors(r.errors, r.mean_errors, r.identity + 1),
    "another order": lambda r: RowErrors(r.errors[::-1], r.mean_errors[::-1], r.identity[::-1]),
    "other pictures of the same people": lambda r: RowErrors(r.errors, r.mean_errors * 1.01, r.identity),
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_runs_scored_on_different_pictures_are_not_compared(change):
    rows = one_run()
    with pytest.raises(ValueError, match="different pictures"):
        paired_difference(rows, DIFFERENT[change](rows), seed=0)
