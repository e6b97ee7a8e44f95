"""Tests of names with weights, of labels and of what is hidden: one type, one parser, one error."""

import shlex

import pytest

from cpgan_ray.cli.train import parse
from cpgan_ray.config import Config, GameConfig, RidgeConfig, UtilityConfig, flatten, override
from cpgan_ray.config.folders.runs import command_for
from cpgan_ray.config.io import from_json, to_json
from cpgan_ray.config.search_space import dimensions
from cpgan_ray.config.weights import read_weights, weight_words
from cpgan_ray.errors import InputError

HIDING = ("--adversaries.male.kind", "ridge", "--adversaries.male.target", "attribute:Male")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("Male",), "'Male' is not a name, = and a number, such as Male=1"),
        (("Male=much",), "'Male=much' is not a name"),
        (("=1",), "'=1' is not a name"),
        (("Male=1", "Male=2"), "'Male' is given twice"),
    ],
)
def test_read_weights_refuses_what_is_no_weight(words, message):
    with pytest.raises(ValueError, match=message):
        read_weights(words)


def test_weight_words_are_read_back():
    weights = {"Male": 0.25, "a=b": 1e-05, "identity": 3.0}
    assert read_weights(weight_words(weights)) == weights


@pytest.mark.parametrize("flag", ["--utility.label-weights", "--game.target-weights"])
@pytest.mark.parametrize("words", [("Male",), ("Male=1", "Male=2"), ("Male=-1",), ("Male=nan",)])
def test_flags_of_both_weights_refuse_the_same_words_in_one_line(flag, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        parse(["smoke", *HIDING, flag, *words], default="smoke", description="")
    assert "\n" not in str(error.value)
    assert words[-1].partition("=")[0] in str(error.value)


def test_command_of_a_run_with_weights_is_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["smoke", *HIDING, "--game.target-weights", "Male=0.5", "--data.labels", "Smiling", "Young"]
    config = parse([*given, "--utility.label-weights", "Smiling=0.2", "Young=3"], default="smoke", description="")
    assert config.utility.label_weights == {"Smiling": 0.2, "Young": 3.0}
    again = parse(shlex.split(command_for(config)), default="smoke", description="")
    assert (again.utility.label_weights, again.game.target_weights) == ({"Smiling": 0.2, "Young": 3.0}, {"Male": 0.5})


def test_weights_of_a_file_are_a_mapping_or_words():
    config = override(Config(), {"utility.label_weights": ["Smiling=0.2"]})
    assert config.utility.label_weights == {"Smiling": 0.2}
    assert from_json(to_json(config)) == config
    assert flatten(config)["utility.label_weights.Smiling"] == 0.2
    with pytest.raises(InputError, match="config field utility.label_weights is .*'Smiling' is given twice"):
        override(Config(), {"utility.label_weights": ["Smiling=0.2", "Smiling=1"]})


def test_both_weights_can_be_searched():
    hidden = {"adversaries": {"male": RidgeConfig(target="attribute:Male")}}
    config = Config(**hidden, game=GameConfig(target_weights={"Male": 1.0}))
    config = override(config, {"utility.label_weights": {"Smiling": 0.2}})
    found = dimensions(["utility.label_weights.Smiling=0.1..1", "game.target_weights.Male"], config, grid=False)
    assert [d.name for d in found] == ["utility.label_weights.Smiling", "game.target_weights.Male"]


def test_list_in_python_becomes_what_the_field_holds():
    assert UtilityConfig(label_weights=["Male=0.5"]).label_weights == {"Male": 0.5}  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"utility\.label_weights is \['Male'\]; it must be") as error:
        UtilityConfig(label_weights=["Male"])  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(error.value)
