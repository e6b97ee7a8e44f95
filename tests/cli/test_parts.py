"""Tests of the flags that select parts: adversaries by kind, absolute names, options, and the configuration of another run."""

import dataclasses
import json
import shlex

import pytest

from cpgan_ray import cli
from cpgan_ray.config import KernelConfig, NeuralConfig, OwnConfig, RidgeConfig, flatten, override, to_json
from cpgan_ray.config.folders.records import write_record
from cpgan_ray.config.presets import preset
from cpgan_ray.errors import InputError


def parse(line: str):
    return cli.parse(line.split(), default="faces", description="")


def test_kind_flag_adds_an_adversary_whose_fields_are_flags():
    config = parse("faces --adversaries.more.kind ridge --adversaries.more.memory-batches 1 --adversaries.rbf.tune-every 3")
    assert list(config.adversaries) == ["ridge", "rbf", "more"]
    assert config.adversaries["more"] == RidgeConfig(memory_batches=1)
    rbf = config.adversaries["rbf"]
    assert isinstance(rbf, KernelConfig) and rbf.tune_every == 3


def test_adversaries_flag_chooses_who_plays_and_copies():
    config = parse("celeba --adversaries rbf mlp=2 decoder=3 --adversaries.decoder-2.width 48 --adversaries.more.kind ridge --k 8")
    assert list(config.adversaries) == ["rbf", "mlp-1", "mlp-2", "decoder-1", "decoder-2", "decoder-3", "more"]
    assert config.adversaries["rbf"] == preset("celeba").adversaries["rbf"]
    assert [config.adversaries[f"decoder-{i}"] for i in (1, 2, 3)] == [NeuralConfig(), NeuralConfig(width=48), NeuralConfig()]
    mlp = config.adversaries["mlp-1"]
    assert isinstance(mlp, NeuralConfig) and (mlp.architecture, mlp.components) == ("mlp", 256)
    assert config.k == 8


def test_adversaries_flag_keeps_settings_of_the_preset_and_of_another_run(tmp_path):
    copies = parse("smoke --adversaries=decoder=2 ridge").adversaries
    assert copies == {f"decoder-{i}": preset("smoke").adversaries["decoder"] for i in (1, 2)} | {
        "ridge": preset("smoke").adversaries["ridge"]
    }
    write_record(tmp_path / "config.json", to_json(parse("smoke --adversaries mlp=2 --adversaries.mlp-2.width 32")))
    again = parse(f"{tmp_path}/config.json --adversaries mlp=3").adversaries
    assert [getattr(adversary, "width", None) for adversary in again.values()] == [64, 32, 512]


def test_adversaries_flag_makes_copies_of_code_by_its_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse("faces --adversaries ridge mine=2 --adversaries.mine.kind eve.py:Eve --adversaries.mine-2.loss-weight 2")
    mine = OwnConfig(kind=f"{tmp_path}/eve.py:Eve")
    expected = {"ridge": RidgeConfig(), "mine-1": mine, "mine-2": dataclasses.replace(mine, loss_weight=2.0)}
    assert config.adversaries == expected


def test_adversaries_flag_of_searches_and_comparisons_sets_the_run():
    job, _ = cli.parse_search(["smoke", "--adversaries", "mlp=2", "ridge", "--num-samples", "4"], description="")
    comparison, _ = cli.parse_reproduce(["digits", "--adversaries", "rbf", "decoder=64", "--num-seeds", "5"], description="")
    assert (list(job.config.adversaries), job.num_samples) == (["mlp-1", "mlp-2", "ridge"], 4)
    assert list(comparison.config.adversaries) == ["rbf", *(f"decoder-{i}" for i in range(1, 65))]


@pytest.mark.parametrize(
    "line",
    [
        "smoke --adversaries mlp=8 --adversaries.mlp-3.width 48",
        "celeba --adversaries rbf ridge decoder=2 --adversaries.decoder-2.kind kernel --adversaries.rbf.kind neural",
        "faces --adversaries.more.kind ridge --adversaries.more.memory-batches 1",
        "faces --adversaries ridge mine=2 --adversaries.mine.kind /eve.py:Eve --adversaries.mine-2.loss-weight 2",
    ],
)
def test_command_that_repeats_a_run_with_other_adversaries_is_complete(line):
    config = parse(line)
    again = cli.parse(shlex.split(cli.command_for(config)), default="faces", description="")
    assert list(again.adversaries.items()) == list(config.adversaries.items())


def test_kind_flag_of_code_makes_an_own_adversary_with_an_absolute_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse(
        'faces --adversaries.mine.kind=eve.py:Eve --adversaries.mine.options {"step":0.5} --adversaries.mine.loss-weight 2'
    )
    assert config.adversaries["mine"] == OwnConfig(kind=f"{tmp_path}/eve.py:Eve", options={"step": 0.5}, loss_weight=2.0)
    assert flatten(config)["adversaries.mine.options.step"] == 0.5


def test_kind_flag_changes_the_kind_of_an_adversary_of_the_preset():
    assert isinstance(
        parse("faces --adversaries.ridge.kind kernel --adversaries.ridge.features 8").adversaries["ridge"], KernelConfig
    )
    same = parse("faces --adversaries.rbf.kind kernel").adversaries["rbf"]
    assert same == preset("faces").adversaries["rbf"], "the settings of the preset stay if the kind does"


def test_names_of_files_become_absolute_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "faces --privatizer.family a.py:f --utility.family b.py:g --attacks.names ridge c.py:h --data.dataset d.py:r "
    config = parse(line + "--privatizer.weights w.safetensors")
    names = [
        config.privatizer.family,
        config.utility.family,
        config.attacks.names[1],
        config.data.dataset,
        config.privatizer.weights,
    ]
    assert names == [f"{tmp_path}/{name}" for name in ("a.py:f", "b.py:g", "c.py:h", "d.py:r", "w.safetensors")]
    job, _ = cli.parse_search(["--search-space", "privatizer.family=conv,a.py:f", "k=3,4"], description="")
    assert job.search_space == (f"privatizer.family=conv,{tmp_path}/a.py:f", "k=3,4")
    comparison, _ = cli.parse_reproduce(["digits", "--mechanisms", "pca", "m.py:mine"], description="")
    assert comparison.mechanisms == ("pca", f"{tmp_path}/m.py:mine")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("faces --privatizer.options [1]", r"^--privatizer\.options: \[1\] is not a JSON object such as "),
        ("faces --privatizer.options {width", r"^--privatizer\.options: \{width is not a JSON object"),
        ("faces --adversaries.x.kind", r"^--adversaries\.x\.kind needs a kind: ridge, kernel, neural, or FILE\.py:NAME"),
        ("faces --adversaries.x.kind --k 3", r"^--adversaries\.x\.kind needs a kind"),
        ("faces --adversaries.a/b.kind ridge", r"'a/b' cannot be the name of an adversary"),
        ("faces --adversaries", r"^--adversaries needs names, each with how many if not one"),
        ("faces --adversaries --k 3", r"^--adversaries needs names"),
        ("faces --adversaries mlp=0", r"^--adversaries: 'mlp=0' has the count '0'; it must be 1 to 64, such as mlp=2"),
        ("faces --adversaries mlp=65", r"'mlp=65' has the count '65'; it must be 1 to 64"),
        ("faces --adversaries mlp=", r"'mlp=' has the count ''; it must be 1 to 64"),
        ("faces --adversaries mpl=2", r"there is no adversary 'mpl'; choose from ridge, kernel, .*mlp.*--adversaries\.mpl\.kind$"),
        ("faces --adversaries ridge ridge", r"'ridge' is given twice: for two of them give a count, such as ridge=2"),
        ("faces --adversaries mlp=2 mlp-2", r"'mlp-2' is given twice: for two of them give a count, such as mlp=2"),
        ("faces --adversaries eve.py:Eve", r"'eve\.py:Eve' cannot be the name .* give code by --adversaries\.NAME\.kind"),
        ("faces --adversaries.x.kind a:b:c", r"adversary\.kind is 'a:b:c'; it must be a built-in name"),
        ("faces --adversaries.x.kind e.py:E --adversaries.x.steps 3", r"unknown flag .*--adversaries\.x\.steps"),
        ("faces --privatizer.family nets.py:", r"privatizer\.family is 'nets\.py:'; it must be a built-in name"),
        ("nothing.json", r"nothing\.json does not exist: give a preset, or the config\.json of a run"),
    ],
)
def test_flag_of_a_part_that_is_wrong_is_one_line(line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        parse(line)
    assert len(str(raised.value).splitlines()) == 1


def test_config_of_another_run_is_the_base_without_its_places(tmp_path):
    config = override(preset("digits"), {"k": 7, "output": str(tmp_path / "old"), "tracking.run_name": "first"})
    write_record(tmp_path / "config.json", to_json(config) | {"run_id": "0" * 32, "store": "/anywhere/0123456789abcdef"})
    again = parse(f"{tmp_path}/config.json --epochs 3")
    assert (again.k, again.epochs, again.output, again.tracking.run_name) == (7, 3, None, None)
    assert again.adversaries == config.adversaries and again.preset == "digits"


def test_config_of_another_run_that_was_edited_is_not_the_users_own(tmp_path, caplog):
    config = override(preset("digits"), {"cache_dir": str(tmp_path / "cache")})
    write_record(tmp_path / "config.json", to_json(config))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"k": 5}))
    again = parse(f"{tmp_path}/config.json")
    assert (again.k, again.cache_dir) == (5, None)
    assert "cache_dir is taken from your flags only" in caplog.text
    assert parse(f"{tmp_path}/config.json --trust").cache_dir == tmp_path / "cache"


def test_command_that_repeats_a_run_with_options_parses_to_the_same_run(tmp_path):
    words = ["digits", "--privatizer.options", '{"width": 3, "name": "a b"}', "--adversaries.mine.kind", f"{tmp_path}/eve.py:Eve"]
    config = cli.parse([*words, "--adversaries.mine.options", '{"step": 0.5}'], default="faces", description="")
    again = cli.parse(shlex.split(cli.command_for(config)), default="faces", description="")
    assert (again.privatizer, again.adversaries) == (config.privatizer, config.adversaries)
