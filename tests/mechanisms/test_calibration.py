"""Tests of the rule by which a comparison chooses settings, on curves whose answer is known."""

import math

import pytest

from cpgan_ray.mechanisms.calibration import Choice, Pilot, choose, run_pilots, target_accuracies

ENDS = (0.01, 100.0)
TARGETS = target_accuracies(0.1, 0.9, count=3)


def four_digits(setting: float) -> float:
    return float(f"{setting:.4g}")


def falling(setting: float) -> float:
    """From 0.9 to 0.1, with its middle at 1."""
    return 0.1 + 0.8 / (1 + setting)


def pilots(curve, *, ends=ENDS, num_pilots=10, canonical=four_digits, targets=TARGETS) -> list[Pilot]:
    return run_pilots(curve, ends=ends, targets=targets, num_pilots=num_pilots, canonical=canonical)


def test_target_accuracies_are_equal_steps_below_the_undefended_accuracy():
    assert target_accuracies(0.1, 0.9, count=4) == pytest.approx((0.9, 0.7, 0.5, 0.3))
    assert target_accuracies(0.5, 0.8, count=1) == (0.8,)


@pytest.mark.parametrize("ends", [ENDS, (100.0, 0.01)])
def test_run_pilots_on_a_monotone_curve_finds_the_settings(ends):
    """falling(s) = t at s = 0.8 / (t - 0.1) - 1; for the other direction of the knob at its inverse."""
    curve = falling if ends == ENDS else lambda setting: falling(1 / setting)
    found = choose(pilots(curve, ends=ends), TARGETS, tolerance=0.04)
    for choice, target in zip(found[1:], TARGETS[1:], strict=True):
        exact = 0.8 / (target - 0.1) - 1
        exact = exact if ends == ENDS else 1 / exact
        assert abs(math.log(choice.setting / exact)) < 0.3
        assert choice.reached
    assert found[0].setting == ends[0]
    assert found[0].reached


@pytest.mark.parametrize("num_pilots", [2, 5, 9])
def test_run_pilots_trains_exactly_so_often_and_never_twice(num_pilots):
    trained = []

    def curve(setting: float) -> float:
        trained.append(setting)
        return falling(setting)

    assert len(pilots(curve, num_pilots=num_pilots)) == num_pilots == len(trained) == len(set(trained))
    assert trained[:2] == list(ENDS)


def test_run_pilots_on_a_curve_that_is_not_monotone_finds_a_setting():
    """A dip to 0.1 near 0.1, then 0.9 again, then down: the first gap that encloses a target is searched."""

    def curve(setting: float) -> float:
        return 0.1 if 0.05 < setting < 0.2 else falling(setting / 10)

    found = choose(pilots(curve, num_pilots=12), TARGETS, tolerance=0.04)
    assert [choice.reached for choice in found] == [True, True, True]
    for choice in found:
        assert choice.val_accuracy == pytest.approx(curve(choice.setting))


def test_run_pilots_at_a_jump_serves_the_other_targets_too():
    """0.9 below 0.5, then a slow fall from 0.5: no setting has 0.63, but 0.37 can be reached."""
    found = choose(pilots(lambda s: 0.9 if s < 0.5 else 0.1 + 0.4 / (1 + s / 20), num_pilots=10), TARGETS, tolerance=0.04)
    assert [choice.reached for choice in found] == [True, False, True]


def test_choose_unreachable_target_takes_the_extreme_setting():
    """A mechanism between 0.3 and 0.7."""
    found = choose(pilots(lambda setting: 0.3 + 0.4 / (1 + setting)), TARGETS, tolerance=0.04)
    assert (found[0].setting, found[0].reached) == (ENDS[0], False)
    assert [choice.reached for choice in found[1:]] == [True, True]
    lowest = choose(pilots(lambda setting: 0.5 + 0.4 / (1 + setting)), TARGETS, tolerance=0.04)
    assert (lowest[2].setting, lowest[2].reached) == (ENDS[1], False)


def test_run_pilots_of_few_code_lengths_stops_and_choose_gives_different_ones():
    """Lengths 1 to 4: the shares that stand for them."""
    found = pilots(lambda share: 0.2 * round(4 * share), ends=(1.0, 0.01), canonical=lambda s: max(1, round(4 * s)) / 4)
    assert [pilot.setting for pilot in found] == [1.0, 0.75, 0.5, 0.25]
    chosen = choose(found, (0.9, 0.85, 0.35), tolerance=0.02)
    assert [choice.setting for choice in chosen] == [1.0, 0.75, 0.5]


def test_choose_with_fewer_pilots_than_targets_drops_the_farthest():
    one = [Pilot(setting=1.0, val_accuracy=0.6)]
    assert choose(one, TARGETS, tolerance=0.05) == (Choice(setting=1.0, target=TARGETS[1], val_accuracy=0.6, reached=True),)


def test_choose_on_a_flat_curve_takes_the_ends_and_not_the_noise():
    """A knob without effect, between 0.85 and 0.87: the two lower targets get the two most private settings."""
    noisy = [Pilot(setting=s, val_accuracy=a) for s, a in ((0.01, 0.87), (0.1, 0.85), (1.0, 0.86), (10.0, 0.87), (100.0, 0.86))]
    found = choose(noisy, (0.9, 0.6, 0.3), tolerance=0.04)
    assert [choice.setting for choice in found[1:]] == [10.0, 100.0]
    assert [choice.reached for choice in found] == [True, False, False]
    assert choose(noisy[:1], (0.9, 0.6, 0.3), tolerance=0.04)[0].setting == 0.01
