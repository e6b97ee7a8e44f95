"""Tests of the weights of labels in the utility loss."""

import math

import numpy as np
import pytest

from cpgan_ray.config import UtilityConfig
from cpgan_ray.data import Task
from cpgan_ray.errors import InputError
from cpgan_ray.training.game import play_in_process
from cpgan_ray.training.label_weights import label_weights

TASK = Task.of(["Blond_Hair", "Male", "Smiling"])


def test_weights_are_given_learned_or_1():
    config = UtilityConfig(train_teachers=1, label_weights={"Male": 0.2}, learned_label_weights={"Male": 0.9, "Smiling": 0.5})
    assert label_weights(config, TASK) == pytest.approx([1.0, 0.2, 0.5])
    assert label_weights(UtilityConfig(), TASK) is None


def test_weight_of_an_unknown_label_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"utility\.label_weights names 'Blond', which is no label .*; nearest: Blond_Hair"):
        label_weights(UtilityConfig(label_weights={"Blond": 0.2}), TASK)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"Male": -1.0}, "label_weights is .*must be at least 0"),
        ({"Male": 0.0}, "gives Male the weight 0, .*: give a small one, such as Male=0.02"),
        ({"Male": math.inf}, "label_weights is .*must be finite"),
    ],
)
def test_bad_weights_are_refused_in_one_line(weights, message):
    with pytest.raises(InputError, match=message) as error:
        UtilityConfig(label_weights=weights)
    assert "\n" not in str(error.value)


def test_learned_weights_without_teachers_are_refused():
    with pytest.raises(InputError, match=r"learn_label_weights is 0\.3, but .*: add --utility\.train-teachers 1"):
        UtilityConfig(learn_label_weights=0.3)


def test_game_with_equal_weights_is_scaled_and_weight_1_changes_nothing(tiny, differing):
    names = ("Male", "Smiling")
    games = {
        weight: play_in_process(tiny("ridge", changes={"data.labels": names, "utility.label_weights": entries}), threads=1)
        for weight, entries in ((None, ()), (1, [f"{name}=1" for name in names]), (0.5, [f"{name}=0.5" for name in names]))
    }
    losses = {weight: game.play(1)[0]["utility/loss"] for weight, game in games.items()}
    assert losses[0.5] == pytest.approx(0.5 * losses[None], rel=1e-5)
    assert differing(games[None].weights(), games[1].weights()) == []
    assert np.isfinite(losses[1])
