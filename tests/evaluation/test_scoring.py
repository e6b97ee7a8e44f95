"""Tests of scores against numpy and scikit-image, of intervals on data with known R2, and of paired differences."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from cpgan_ray.data.store import MISSING
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted, Pairs
from cpgan_ray.evaluation.protocol import region
from cpgan_ray.evaluation.scoring import (
    RESAMPLES,
    RowErrors,
    accuracy_intervals,
    balanced_accuracy_interval,
    interval,
    interval_ends,
    mean_interval,
    mean_over_labels_interval,
    paired_difference,
    resampled_r2,
    restart_std,
    score,
    two_sided_p,
)
from cpgan_ray.evaluation.similarity import legacy_mse, similarity
from cpgan_ray.training.adversaries.base import Target

torch.set_num_threads(1)

ROWS, SHAPE, P = 300, (12, 13, 2), 20
D = 12 * 13 * 2
COMPONENTS = torch.linalg.qr(torch.randn(D, P, generator=torch.Generator().manual_seed(0)))[0].T
MEAN = torch.linspace(-0.2, 0.4, D)
"""Mean of other pictures than the score pictures, like the mean training picture."""


def random_pictures() -> tuple[Tensor, Tensor]:
    """Pictures (N, D) in [-1, 1], many pixels at the limits, and noisy reconstructions, partly outside the limits."""
    generator = torch.Generator().manual_seed(1)
    x = (0.6 * torch.randn(ROWS, D, generator=generator) + 0.2).clamp(-1, 1)
    return x, x + 0.3 * torch.randn(ROWS, D, generator=generator)


def attack_data(x: Tensor, codes: Tensor, *, bounded: bool = True, image_shape: tuple[int, int, int] | None = SHAPE) -> AttackData:
    """Attack data with two pictures per person."""
    pixels = x - MEAN
    values = pixels @ COMPONENTS.T
    residual = pixels.square().sum(1) - values.square().sum(1)
    pairs = Pairs(codes, Target(values, residual, D), pixels, np.arange(len(x)) // 2)
    bounds = (-1 - MEAN, 1 - MEAN) if bounded else None
    return AttackData(pairs, pairs, pairs, COMPONENTS, bounds, image_shape, seed=0, pictures=bounded)


def attack(reconstruct: Callable[[Tensor], Tensor], *, space: str = "pixels") -> Fitted:
    return Fitted(reconstruct, space, tune_r2=0.0, saturated=True, settings={})


def data_and_attack(**how) -> tuple[AttackData, Fitted, np.ndarray, np.ndarray]:
    """Data and an attack whose codes are its reconstructions; reconstructions and pictures, minus the mean, in float64 numpy."""
    x, x_hat = random_pictures()
    fitted = attack(lambda z: z - MEAN)
    return attack_data(x, x_hat, **how), fitted, (x_hat - MEAN).double().numpy(), (x - MEAN).double().numpy()


def test_score_matches_numpy():
    data, fitted, x_hat, x = data_and_attack(bounded=False)
    result, rows = score(data, fitted)
    assert rows.errors == pytest.approx(np.square(x_hat - x).mean(axis=1), rel=1e-5)
    assert rows.mean_errors == pytest.approx(np.square(x).mean(axis=1), rel=1e-5)
    assert rows.identity.tolist() == data.score.identity.tolist()
    assert result.r2 == pytest.approx(1 - np.square(x_hat - x).mean() / np.square(x).mean(), abs=1e-6)
    assert result.mse == pytest.approx(np.square(x_hat - x).mean(), rel=1e-5)
    assert result.mse_raw == pytest.approx(np.square((x_hat - x) * data.unit).mean(), rel=1e-5), (
        "errors of signals are in their own unit"
    )
    assert result.low < result.r2 < result.high


def test_score_on_the_face_region_matches_numpy():
    data, fitted, x_hat, x = data_and_attack(bounded=False)
    inside = region((0.25, 0.2, 0.75, 0.9), SHAPE)
    result, _ = score(dataclasses.replace(data, face=torch.from_numpy(inside)), fitted)
    assert result.face_r2 == pytest.approx(1 - np.square(x_hat - x)[:, inside].sum() / np.square(x)[:, inside].sum(), abs=1e-6)
    assert result.face_low is not None and result.face_high is not None
    assert result.face_low < result.face_r2 < result.face_high
    assert score(data, fitted)[0].face_r2 is None


def test_region_has_the_pixels_with_their_centre_inside():
    inside = region((0.0, 0.5, 0.5, 1.0), (4, 4, 2)).reshape(4, 4, 2)
    assert inside[:2, 2:].all()
    assert inside.sum() == 2 * 4


def test_score_of_pictures_uses_usual_scales():
    data, fitted, _, _ = data_and_attack(bounded=True)
    result, rows = score(data, fitted, similar=False)
    assert result.mse == pytest.approx(rows.errors.mean() / 4)
    assert result.mse_255 == pytest.approx(rows.errors.mean() / 4 * 255**2)
    assert result.mse_raw is None


def test_score_on_components_counts_whole_picture():
    """Variance outside the components is lost, and counts as error."""
    x, _ = random_pictures()
    data = attack_data(x, (x - MEAN) @ COMPONENTS.T, bounded=False)
    result, _ = score(data, attack(lambda z: z, space="components"))
    pixels, projector = ((x - MEAN).double().numpy(), (COMPONENTS.T @ COMPONENTS).double().numpy())
    assert result.r2 == pytest.approx(1 - np.square(pixels - pixels @ projector).sum() / np.square(pixels).sum(), abs=1e-5)
    assert 0 < result.r2 < 0.5


def test_score_clipping_never_increases_error():
    free, bounded = (score(*data_and_attack(bounded=b)[:2])[1] for b in (False, True))
    assert (bounded.errors <= free.errors).all()
    assert (bounded.errors < 0.95 * free.errors).mean() > 0.9
    data, _, x_hat, x = data_and_attack()
    assert data.bounds is not None
    low, high = (bound.numpy() for bound in data.bounds)
    assert bounded.errors == pytest.approx(np.square(x_hat.clip(low, high) - x).mean(axis=1), rel=1e-4)


def test_score_similarity_is_mean_over_pictures():
    """300 pictures are scored in two blocks of different sizes."""
    x, x_hat = (v.view(ROWS, *SHAPE).double() for v in random_pictures())
    unit_x_hat, unit_x = (((v.clamp(-1, 1) + 1) / 2).permute(0, 3, 1, 2) for v in (x_hat, x))
    data, fitted, _, _ = data_and_attack()
    result, _ = score(data, fitted, legacy=True)
    psnr = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(unit_x_hat.numpy(), unit_x.numpy(), strict=True)]
    assert result.psnr == pytest.approx(np.mean(psnr), abs=1e-3)
    assert result.ssim == pytest.approx(similarity(unit_x_hat, unit_x)["ssim"].mean(), abs=1e-4)
    assert result.legacy_mse == pytest.approx(legacy_mse(unit_x_hat, unit_x).mean(), rel=0.01)
    assert result.ms_ssim is None, "too small for two scales"


def test_score_of_signals_has_no_similarity():
    data, fitted, _, _ = data_and_attack(image_shape=None)
    for result in (score(data, fitted, legacy=True)[0], score(*data_and_attack()[:2], similar=False)[0]):
        assert (result.psnr, result.ssim, result.ms_ssim, result.legacy_mse) == (None,) * 4


def test_score_similarity_and_legacy_mse_are_independent_options():
    data, fitted, _, _ = data_and_attack()
    both, similar, legacy = (score(data, fitted, similar=s, legacy=w)[0] for s, w in ((True, True), (True, False), (False, True)))
    assert similar == dataclasses.replace(both, legacy_mse=None)
    assert legacy == dataclasses.replace(both, psnr=None, ssim=None, ms_ssim=None)
    assert None not in (both.psnr, both.ssim, both.legacy_mse)


def test_score_of_mean_is_0_and_of_picture_itself_1():
    data, _, _, _ = data_and_attack()
    nothing, _ = score(data, attack(torch.zeros_like))
    assert (nothing.r2, nothing.low, nothing.high) == (0, 0, 0)
    x, _ = random_pictures()
    result, _ = score(attack_data(x, x - MEAN), attack(lambda z: z), similar=False)
    assert (result.r2, result.mse) == (1, 0)


@pytest.mark.parametrize(("value", "bounded"), [(torch.nan, True), (torch.nan, False), (torch.inf, False)])
def test_score_nonfinite_reconstruction_raises(value, bounded):
    data, fitted, _, _ = data_and_attack(bounded=bounded)
    data.score.z[ROWS - 1, 7] = value
    with pytest.raises(ValueError, match="not finite"):
        score(data, fitted)


def people_with(rng: np.random.Generator, *, people: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures of some people: identity, variance, and how badly the person is recovered (mean 0)."""
    identity = np.repeat(np.arange(people), rng.integers(1, 9, size=people))
    variance = rng.lognormal(sigma=0.3, size=len(identity))
    return identity, variance, rng.normal(size=people)[identity]


R2 = 0.3
"""E[error] = (1 - R2) E[variance] below."""


def test_interval_covers_true_r2_at_nominal_rate():
    """If rows were resampled as people, the interval would be far too narrow, because pictures of a person share their error."""
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


def test_interval_of_few_people_is_nearly_as_sure_as_it_says():
    """Nine people, as on HAR. Quantiles 0.025 and 0.975 of the same bootstrap samples cover less than 0.9."""
    rng = np.random.default_rng(0)
    covered, plain = [], []
    for seed in range(400):
        variance = rng.integers(200, 400, size=9).astype(float)
        rows = RowErrors(variance * (1 - R2 + 0.1 * rng.normal(size=9)), variance, np.arange(9))
        low, high = interval(rows, seed=seed)
        covered.append(low <= R2 <= high)
        left, right = np.quantile(resampled_r2(rows, seed=seed), [0.025, 0.975])
        plain.append(left <= R2 <= right)
    assert np.mean(plain) < 0.91 < 0.92 <= np.mean(covered) <= 0.97


def test_interval_ends_approach_plain_quantiles_with_many_people():
    assert interval_ends(np.arange(20_000)) == pytest.approx([0.025, 0.975], abs=1e-4)
    assert interval_ends(np.arange(9))[0] == pytest.approx(stats.norm.cdf(-np.sqrt(9 / 8) * stats.t.ppf(0.975, 8)))
    assert interval_ends(np.zeros(5)) == [0, 1], "one person says nothing about others"


@pytest.mark.parametrize("people", [9, 500])
def test_two_sided_p_belongs_to_the_interval(people):
    tail = interval_ends(np.arange(people), level=0.9)[0]
    assert two_sided_p(tail, people=people) == pytest.approx(0.1)
    assert two_sided_p(0.5, people=people) == two_sided_p(0.01, people=1) == 1


def test_interval_with_restarts_covers_expected_r2_of_attack():
    """Each attack is the average of four restarts, whose R2 deviate from their expectation as much as the score people's do."""
    rng = np.random.default_rng(4)
    with_restarts, without = [], []
    for seed in range(200):
        identity, variance, person = people_with(rng)
        restarts = 0.06 * rng.normal(size=4)
        errors = variance * (1 - R2 - restarts.mean() + 0.2 * person)
        deviation = restarts.std(ddof=1) / 2
        for covered, std in ((with_restarts, deviation), (without, 0.0)):
            low, high = interval(RowErrors(errors, variance, identity, restart_std=std), seed=seed)
            covered.append(low <= R2 <= high)
    assert 0.9 <= np.mean(with_restarts) <= 0.98
    assert np.mean(without) < 0.85


@pytest.mark.parametrize("averaged", [True, False])
def test_restart_std_is_sample_deviation_of_restarts(averaged):
    data, fitted, _, x = data_and_attack(bounded=False)
    parts = [lambda z, f=factor: f * (z - MEAN) for factor in (0.5, 0.8, 1.0)]
    r2 = [1 - np.square(part(data.score.z).double().numpy() - x).sum() / np.square(x).sum() for part in parts]
    expected = np.std(r2, ddof=1) / (3**0.5 if averaged else 1)
    random = dataclasses.replace(fitted, restarts=tuple(parts), averaged=averaged)
    whole, face = restart_std(data, random)
    assert whole == pytest.approx(expected, rel=1e-4)
    assert face is None
    result, _ = score(data, random, similar=False)
    plain, _ = score(data, fitted, similar=False)
    assert result.restart_std == whole
    assert plain.restart_std is None
    assert result.high - result.low > plain.high - plain.low


def test_face_interval_includes_the_restarts():
    data, fitted, _, x = data_and_attack(bounded=False)
    face = np.arange(x.shape[1]) < 4
    on_face = dataclasses.replace(data, face=torch.from_numpy(face))
    parts = [lambda z, f=factor: f * (z - MEAN) for factor in (0.5, 0.8, 1.0)]
    errors = [np.square((part(data.score.z).double().numpy() - x)[:, face]).sum() for part in parts]
    random = dataclasses.replace(fitted, restarts=tuple(parts))
    _, deviation = restart_std(on_face, random)
    assert deviation == pytest.approx(np.std(1 - np.array(errors) / np.square(x[:, face]).sum(), ddof=1), rel=1e-4)
    result, plain = (score(on_face, attack, similar=False)[0] for attack in (random, fitted))
    assert result.face_r2 == plain.face_r2
    assert result.face_high - result.face_low > plain.face_high - plain.face_low


def test_paired_difference_adds_variances_of_restarts():
    """Without people's variation the interval is that of a normal number with both variances."""
    ones, people = np.ones(2000), np.arange(2000)
    a, b = (RowErrors(level * ones, ones, people, restart_std=std) for level, std in ((0.8, 0.03), (0.9, 0.04)))
    result = paired_difference(a, b, seed=0)
    assert result.r2 == pytest.approx(0.1)
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * 0.05, rel=0.1)


def one_run() -> RowErrors:
    identity, variance, person = people_with(np.random.default_rng(3))
    return RowErrors(variance * (1 - R2 + 0.2 * person), variance, identity)


def test_interval_is_repeatable_and_wider_at_higher_level():
    rows = one_run()
    assert interval(rows, seed=1) == interval(rows, seed=1) != interval(rows, seed=2)
    levels = [interval(rows, seed=1, level=level) for level in (0.5, 0.95, 0.99)]
    lows, highs = zip(*levels, strict=True)
    assert sorted(lows, reverse=True) == list(lows)
    assert sorted(highs) == list(highs)
    assert lows[0] < rows.r2 < highs[0]


def test_interval_ignores_names_and_order_of_people():
    rows = one_run()
    renamed = RowErrors(rows.errors, rows.mean_errors, rows.identity * 7 + 1000)
    assert interval(renamed, seed=1) == interval(rows, seed=1)
    order = np.random.default_rng(0).permutation(len(rows.errors))
    shuffled = RowErrors(rows.errors[order], rows.mean_errors[order], rows.identity[order])
    assert interval(shuffled, seed=1) == pytest.approx(interval(rows, seed=1), abs=1e-12)


def test_accuracy_intervals_cover_truth_at_nominal_rate():
    """Two labels; the right answers are 0.9 of the zeros and 0.6 of the ones; a fifth of the values are ones."""
    truth, covered = np.array([0.9 * 0.8 + 0.6 * 0.2, 0.75]), np.zeros(2)
    for trial in range(100):
        rng = np.random.default_rng(trial)
        y = rng.random((400, 2)) < 0.2
        right = rng.random(y.shape) < np.where(y, 0.6, 0.9)
        people = np.arange(400) // 2
        result = accuracy_intervals(right, y.astype(np.int8), people, num_values=(2, 2), seed=trial)
        covered += [np.mean((one[:, 0] <= t) & (t <= one[:, 1])) for one, t in zip(result, truth, strict=True)]
        assert result[0][1] == pytest.approx(mean_interval(right[:, 1], people, seed=trial))
    assert (covered >= 88).all() and (covered <= 99).all(), covered


def test_accuracy_intervals_skip_samples_without_a_class():
    y = np.zeros((30, 2), int)
    y[3, 1] = 1
    right = np.ones((30, 2), bool)
    plain, balanced = accuracy_intervals(right, y, np.arange(30), num_values=(2, 2), seed=0)
    assert plain.tolist() == [[1, 1], [1, 1]]
    assert np.isnan(balanced[0]).all() and balanced[1].tolist() == [1, 1]


def mixed_answers(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether answers are right (0.9 of the zeros, 0.6 of the others), true answers to labels of two and of four values, a third of
    them missing, and people with two rows each."""
    y = np.stack([rng.random(400) < 0.2, rng.integers(0, 4, 400)], axis=1).astype(np.int8)
    right = rng.random(y.shape) < np.where(y > 0, 0.6, 0.9)
    missing = rng.random(y.shape) < 0.33
    y[missing] = MISSING
    return right & ~missing, y, np.arange(400) // 2


def test_intervals_of_mixed_labels_with_missing_answers_cover_truth():
    accuracies = np.array([0.9 * 0.8 + 0.6 * 0.2, (0.9 + 3 * 0.6) / 4])
    recalls = np.array([0.75, (0.9 + 3 * 0.6) / 4])
    covered, mean_covered = np.zeros((2, 2)), np.zeros(2)
    for trial in range(100):
        right, y, people = mixed_answers(np.random.default_rng(trial))
        ends = accuracy_intervals(right, y, people, num_values=(2, 4), seed=trial)
        covered += [(of[:, 0] <= truth) & (truth <= of[:, 1]) for of, truth in zip(ends, (accuracies, recalls), strict=True)]
        means = (
            mean_over_labels_interval(right, y != MISSING, people, seed=trial),
            balanced_accuracy_interval(right, y, people, num_values=(2, 4), seed=trial),
        )
        mean_covered += [low <= truth.mean() <= high for (low, high), truth in zip(means, (accuracies, recalls), strict=True)]
    for counts in (covered, mean_covered):
        assert (counts >= 88).all() and (counts <= 99).all(), counts


def test_intervals_of_a_label_without_answers_are_nan_and_do_not_count():
    right, y, people = mixed_answers(np.random.default_rng(0))
    y[:, 0], right[:, 0] = MISSING, False
    plain, balanced = accuracy_intervals(right, y, people, num_values=(2, 4), seed=0)
    assert np.isnan([plain[0], balanced[0]]).all() and np.isfinite([plain[1], balanced[1]]).all()
    assert mean_over_labels_interval(right, y != MISSING, people, seed=0) == pytest.approx(plain[1])
    assert balanced_accuracy_interval(right, y, people, num_values=(2, 4), seed=0) == pytest.approx(balanced[1])


def test_interval_over_labels_of_few_answers_leaves_out_empty_samples():
    y = np.full((30, 1), MISSING)
    y[:2, 0] = [0, 1]
    right = y == 1
    low, high = mean_over_labels_interval(right, y != MISSING, np.arange(30), seed=0)
    assert (low, high) == (0, 1)
    assert np.isfinite(balanced_accuracy_interval(right, y, np.arange(30), num_values=(2,), seed=0)).all()


def two_runs(rng: np.random.Generator, *, better: float) -> tuple[RowErrors, RowErrors]:
    """Two runs with common errors on people and pictures and a little independent noise; R2 of the first is larger by `better`."""
    identity, variance, person = people_with(rng)
    shared = 1 - R2 + 0.2 * person
    runs = [shared - gain + 0.03 * rng.normal(size=len(identity)) for gain in (better, 0.0)]
    one, other = (RowErrors(variance * errors, variance, identity) for errors in runs)
    return one, other


def test_paired_difference_of_equal_runs_is_rarely_significant():
    rng = np.random.default_rng(1)
    result = [paired_difference(*two_runs(rng, better=0.0), seed=seed) for seed in range(100)]
    assert 0.88 <= np.mean([d.low <= 0 <= d.high for d in result]) <= 0.99
    assert np.mean([d.p < 0.05 for d in result]) <= 0.12
    assert 0.3 < np.mean([d.p for d in result]) < 0.7


def test_paired_difference_finds_small_difference():
    rng = np.random.default_rng(2)
    for seed in range(20):
        better_run, worse_run = two_runs(rng, better=0.02)
        result = paired_difference(better_run, worse_run, seed=seed)
        assert result.r2 == pytest.approx(better_run.r2 - worse_run.r2)
        assert 0 < result.low < result.r2 < result.high < 0.04
        smallest = two_sided_p(1 / (2 * RESAMPLES), people=60)
        assert result.p == smallest < 0.002, "the difference has the same sign in all bootstrap samples"
        assert interval(better_run, seed=seed)[0] < worse_run.r2 and better_run.r2 < interval(worse_run, seed=seed)[1], (
            "each R2 is inside the other's interval"
        )


def test_paired_difference_is_antisymmetric():
    first, second = two_runs(np.random.default_rng(4), better=0.004)
    forward, back = paired_difference(first, second, seed=0), paired_difference(second, first, seed=0)
    assert (back.r2, back.low, back.high, back.p) == pytest.approx((-forward.r2, -forward.high, -forward.low, forward.p))


def test_paired_difference_of_run_with_itself_is_zero():
    rows = one_run()
    result = paired_difference(rows, rows, seed=0)
    assert (result.r2, result.low, result.high, result.p) == (0, 0, 0, 1)


DIFFERENT = {
    "fewer rows": lambda r: RowErrors(r.errors[1:], r.mean_errors[1:], r.identity[1:]),
    "other people": lambda r: RowErrors(r.errors, r.mean_errors, r.identity + 1),
    "another order": lambda r: RowErrors(r.errors[::-1], r.mean_errors[::-1], r.identity[::-1]),
    "other pictures of the same people": lambda r: RowErrors(r.errors, r.mean_errors * 1.01, r.identity),
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_paired_difference_on_different_pictures_raises(change):
    rows = one_run()
    with pytest.raises(ValueError, match="different pictures"):
        paired_difference(rows, DIFFERENT[change](rows), seed=0)
