"""What a search varies: declared ranges, ranges given by flag, and what cannot be searched."""

import math

import numpy as np
import pytest

from cpgan_ray.config import Range, override
from cpgan_ray.config.presets import preset
from cpgan_ray.config.search_space import Dimension, combinations, dimensions, field_type, pairs, shown
from cpgan_ray.errors import InputError

CELEBA = preset("celeba")


def one(text: str, *, grid: bool = False) -> Dimension:
    (found,) = dimensions([text], CELEBA, grid=grid)
    return found


def test_dimension_of_a_field_uses_its_declared_range():
    assert one("k") == Dimension(name="k", low=8, high=256, log=True, integer=True)
    assert one("game.warmup_epochs") == Dimension(name="game.warmup_epochs", low=0, high=8, log=False)
    assert one("adversaries.rbf.memory_batches") == Dimension(
        name="adversaries.rbf.memory_batches", low=0, high=6, log=False, integer=True
    )


def test_dimension_of_a_choice_has_all_its_values():
    assert one("game.aggregate").values == ("strongest", "softmax", "mean")
    assert one("privatizer.symmetric").values == (False, True)


def test_dimension_of_a_restricted_choice_has_the_declared_values():
    assert one("privatizer.family").values == one("privatizer.family", grid=True).values == ("conv", "residual")
    assert one("utility.family").values == ("mlp", "lenet")
    assert one("privatizer.family=lenet,whitened").values == ("lenet", "whitened")
    (found,) = dimensions(["adversaries.decoder.architecture"], preset("celeba_paper"), grid=False)
    assert found.values == ("mlp", "conv", "upsample", "resnet")


def test_pairs_have_every_two_values_of_every_two_fields():
    found = dimensions(["k", "privatizer.family=conv,linear", "privatizer.symmetric"], CELEBA, grid=False)
    settings = pairs(found)
    assert len(settings) == 3 * 2 + 3 * 2 + 2 * 2
    assert {"k": 9, "privatizer.family": "linear"} in settings, "an odd length, though both ends are even"
    assert pairs(found[:1]) == [{"k": 8}, {"k": 9}, {"k": 256}]


def test_dimension_with_given_values_or_bounds_uses_them():
    assert one("k=16,64").values == (16, 64)
    assert one("game.aggregate=mean,softmax").values == ("mean", "softmax")
    assert one("privacy_weight=0.05..2") == Dimension(name="privacy_weight", low=0.05, high=2.0, log=True)
    assert one("game.temperature=0.01..0.2").log, "no range is declared, the bounds are a factor of twenty apart"


def test_dimensions_of_a_grid_have_values():
    assert one("k", grid=True).values == (16, 64, 256)
    assert combinations(dimensions(["k=1,2", "privatizer.symmetric"], CELEBA, grid=True)) == [
        {"k": k, "privatizer.symmetric": symmetric} for k in (1, 2) for symmetric in (False, True)
    ]


@pytest.mark.parametrize("text", ["k", "privacy_weight", "game.holdout_fraction=0.1..0.5", "k=16,64"])
def test_sample_is_within_bounds_and_fits_the_config(text):
    rng, found = np.random.default_rng(0), one(text)
    for _ in range(200):
        value = found.sample(rng)
        assert value in found.values or found.low <= value <= found.high
        assert float(f"{value:.3g}") == value
        override(CELEBA, {found.name: value})


def test_sample_of_a_log_range_is_uniform_in_the_logarithm():
    rng, found = np.random.default_rng(0), one("privacy_weight")
    logs = np.log10([found.sample(rng) for _ in range(2000)])
    low, high = np.log10([found.low, found.high])
    assert np.quantile(logs, [0.25, 0.5, 0.75]) == pytest.approx(np.linspace(low, high, 5)[1:4], abs=0.06)


def test_declared_ranges_and_grids_fit_their_fields():
    declared = 0
    for preset_name in ("celeba", "celeba_paper", "smoke"):
        config = preset(preset_name)
        for name in (
            "k",
            "privacy_weight",
            "epochs",
            "privatizer.width",
            "privatizer.depth",
            "utility.dropout",
            "game.holdout_fraction",
        ):
            kind, found = field_type(name, config)
            assert isinstance(found, Range)
            declared += 1
            assert found.low < found.high
            assert not found.log or found.low > 0
            for value in (found.low, found.high, *found.grid):
                assert found.low <= value <= found.high
                assert kind is not int or math.floor(value) == value
                override(config, {name: value})
    assert declared == 21


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kk", "no field of that name.*nearest: k"),
        ("seed", "over seed: no field"),
        ("attacks.epochs", "over attacks.epochs"),
        ("data.dataset", "over data.dataset: no field"),
        ("privatizer.family=a:b:c", "privatizer.family is 'a:b:c'; it must be a built-in name, a name that"),
        ("adversaries.rfb.memory_batches", "adversaries.rbf.memory_batches"),
        ("data.labels", "declares no range.*data.labels=1,2,3"),
        ("k=0,4", "k is 0; it must be at least 1"),
        ("k=a,b", "k is 'a'; it must be a whole number"),
        ("k=8..x", "'x' is no number"),
        ("k=9..8", "9 is not below 8"),
        ("privacy_weight=-1..1", "privacy_weight is -1"),
    ],
)
def test_dimension_that_cannot_be_searched_is_named(text, said):
    with pytest.raises(InputError, match=said):
        dimensions([text], CELEBA, grid=False)


def test_dimensions_with_grid_bounds_or_a_repeated_field_are_refused():
    with pytest.raises(InputError, match="a grid needs values, such as k=8,64"):
        dimensions(["k=8..64"], CELEBA, grid=True)
    with pytest.raises(InputError, match="names k twice"):
        dimensions(["k", "k=1,2"], CELEBA, grid=False)


def test_shown_setting_can_be_typed_as_flags():
    assert shown({"k": 64, "privacy_weight": 0.2, "privatizer.family": "conv"}, seed=3) == (
        "k=64 privacy_weight=0.2 privatizer.family=conv seed=3"
    )
