"""A configuration is checked when it is made: every bad value is named with its field."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from cpgan_ray.config import (
    AttackConfig,
    AttackJob,
    Config,
    DataConfig,
    GameConfig,
    KernelConfig,
    NeuralConfig,
    PrivatizerConfig,
    ReproduceJob,
    RidgeConfig,
    RuntimeConfig,
    TrackingConfig,
    UtilityConfig,
    flatten,
    from_json,
    override,
    schema,
    to_json,
)
from cpgan_ray.config import jobs as module
from cpgan_ray.config.marks import Choices, Range
from cpgan_ray.errors import InputError

NAN = math.nan
SECTIONS = [
    c
    for c in {**vars(schema), **vars(module)}.values()
    if dataclasses.is_dataclass(c) and isinstance(c, type) and c not in (Range, Choices)
]
ADVERSARIES = [RidgeConfig, KernelConfig, NeuralConfig]

TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"privatizer.levels": 3}, r"privatizer\.levels is 3 and privatizer\.quantization_step 0; finite codes need"),
    ({"privatizer.levels": 1, "privatizer.quantization_step": 1}, r"privatizer\.levels is 1 .* need at least 2 levels"),
    (
        {"privatizer.levels": 3, "privatizer.quantization_step": 1, "privatizer.noise": 1},
        r"levels is 3, but privatizer\.noise is 1",
    ),
    ({"game.rate_weight": 0.1}, r"game\.rate_weight is 0\.1, but codes without privatizer\.levels have no fixed length"),
]

BAD: list[tuple[type, str, Any]] = [
    (module.SearchJob, "search_space", ()),
    (module.SearchJob, "num_samples", 0),
    (module.SearchJob, "num_seeds", 0),
    (module.SearchJob, "max_failures", -1),
    (module.SearchJob, "max_concurrent", -1),
    (module.SearchJob, "max_r2", 1.1),
    (module.SearchJob, "min_accuracy", -0.1),
    (DataConfig, "image_size", 7),
    (DataConfig, "image_size", 1025),
    (DataConfig, "crop", 0.0),
    (DataConfig, "crop", 1.01),
    (DataConfig, "crop", NAN),
    (DataConfig, "max_shift_px", -1),
    (DataConfig, "max_shift_px", 32),
    (DataConfig, "num_identities", 9),
    (DataConfig, "pictures_per_identity", 0),
    (PrivatizerConfig, "width", 0),
    (PrivatizerConfig, "depth", 0),
    (PrivatizerConfig, "depth", 9),
    (PrivatizerConfig, "learning_rate", 0.0),
    (PrivatizerConfig, "learning_rate", NAN),
    (PrivatizerConfig, "weight_decay", -0.1),
    (PrivatizerConfig, "ema_decay", 1.0),
    (PrivatizerConfig, "ema_decay", -0.5),
    (PrivatizerConfig, "quantization_step", -0.5),
    (UtilityConfig, "hidden", -1),
    (UtilityConfig, "dropout", 1.0),
    (UtilityConfig, "dropout", -0.1),
    (UtilityConfig, "learning_rate", 0.0),
    (GameConfig, "temperature", 0.0),
    (GameConfig, "warmup_epochs", -1.0),
    (GameConfig, "holdout_fraction", 0.0),
    (GameConfig, "holdout_fraction", 1.0),
    *((c, "penalties", v) for c in (RidgeConfig, KernelConfig) for v in ((), (0.0,), (1e-3, -1.0))),
    *((c, "memory_batches", -1) for c in ADVERSARIES),
    *((c, "components", -1) for c in (RidgeConfig, KernelConfig)),
    (KernelConfig, "features", -1),
    (KernelConfig, "bandwidths", ()),
    (KernelConfig, "bandwidths", (1.0, 0.0)),
    (KernelConfig, "tune_every", 0),
    *((NeuralConfig, name, 0) for name in ("width", "depth", "steps")),
    (NeuralConfig, "dropout", 1.0),
    (NeuralConfig, "learning_rate", -1e-3),
    (NeuralConfig, "learning_rate", NAN),
    *(
        (RuntimeConfig, name, -1)
        for name in ("threads", "privatizer_cpus", "privatizer_gpus", "adversary_cpus", "adversary_gpus", "startup_timeout_s")
    ),
    (RuntimeConfig, "reply_timeout_s", 0.0),
    (AttackConfig, "names", ()),
    (AttackConfig, "max_rows", -1),
    (AttackConfig, "mlp_widths", ()),
    (AttackConfig, "mlp_widths", (64, 0)),
    (AttackConfig, "variants", ()),
    (AttackConfig, "fit_fractions", (0.1, 1.0)),
    *((AttackConfig, name, 0) for name in ("restarts", "epochs", "decoder_width", "cpus")),
    (AttackConfig, "max_budget_doublings", -1),
    (AttackConfig, "gpus", -0.5),
    (AttackJob, "fail_above", 1.5),
    (AttackJob, "seed", -1),
    (AttackConfig, "kernel_features", 0),
    (TrackingConfig, "panel_every", -1),
    (Config, "k", 0),
    (Config, "privacy_weight", -0.5),
    (Config, "privacy_weight", NAN),
    (Config, "epochs", 0),
    (Config, "batch_size", 3),
    (Config, "seed", -1),
]


@pytest.mark.parametrize(("section", "name", "value"), BAD)
def test_config_with_a_bad_value_names_field_and_value(section, name, value):
    with pytest.raises(InputError) as raised:
        section(**{name: value})
    assert name in str(raised.value)
    assert repr(value) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "value"), [("loss_weight", -1.0), ("loss_weight", NAN), ("cpus", -1.0), ("gpus", -0.5)])
@pytest.mark.parametrize("section", ADVERSARIES)
def test_adversary_config_with_a_bad_shared_value_names_it(section, name, value):
    with pytest.raises(InputError, match=rf"{name}.*{value!r}"):
        section(**{name: value})


def test_neural_config_with_negative_components_is_refused():
    with pytest.raises(InputError, match=r"components.*-1"):
        NeuralConfig(architecture="mlp", components=-1)


@pytest.mark.parametrize("section", [RidgeConfig, KernelConfig])
def test_adversary_config_with_a_nan_penalty_is_refused(section):
    for penalties in ((NAN,), (NAN, 1.0), (1.0, NAN)):
        with pytest.raises(InputError, match="penalties"):
            section(penalties=penalties)


@pytest.mark.parametrize(
    ("section", "settings", "named"),
    [
        (KernelConfig, {"fit": "epoch"}, ["fit", "'epoch'", "features=0"]),
        (NeuralConfig, {"architecture": "conv", "components": 8}, ["components=8", "'conv'", "mlp"]),
        (NeuralConfig, {"architecture": "conv", "paper_decoder": "picture"}, ["paper_decoder='picture'", "'conv'", "'paper'"]),
        (PrivatizerConfig, {"norm_momentum": 0.01}, ["privatizer.norm_momentum", "0.01", "'picture'", "'conv'"]),
        (DataConfig, {"image_size": 16, "max_shift_px": 8}, ["max_shift_px", "8", "image_size"]),
    ],
)
def test_config_with_contradicting_settings_names_them(section, settings, named):
    with pytest.raises(InputError) as raised:
        section(**settings)
    assert [word for word in named if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        (DataConfig, {"image_size": 8, "max_shift_px": 3, "crop": 1.0, "num_identities": 10, "pictures_per_identity": 1}),
        (DataConfig, {"image_size": 1024}),
        (PrivatizerConfig, {"width": 1, "depth": 8, "weight_decay": 0.0, "ema_decay": 0.0}),
        (UtilityConfig, {"hidden": 0, "dropout": 0.0}),
        (RidgeConfig, {"memory_batches": 0, "components": 0, "penalties": (1e-9,)}),
        (KernelConfig, {"memory_batches": 0, "tune_every": 1, "bandwidths": (1e-3,)}),
        (KernelConfig, {"fit": "epoch", "features": 1}),
        (NeuralConfig, {"width": 1, "depth": 1, "steps": 1, "memory_batches": 0}),
        (NeuralConfig, {"architecture": "mlp", "components": 8}),
        (RuntimeConfig, {"privatizer_cpus": 0, "adversary_cpus": None, "threads": 0, "startup_timeout_s": 0}),
        (
            AttackConfig,
            {"names": ("mlp",), "epochs": 1, "max_budget_doublings": 0, "kernel_features": 1, "max_rows": 0, "fit_fractions": ()},
        ),
        (Config, {"k": 1, "privacy_weight": 0, "epochs": 1, "batch_size": 4, "seed": 0}),
    ],
)
def test_config_with_values_at_the_bounds_is_accepted(section, settings):
    made = section(**settings)
    assert {name: getattr(made, name) for name in settings} == settings


@pytest.mark.parametrize("section", SECTIONS)
def test_config_is_frozen_and_keyword_only(section):
    made, name = section(), dataclasses.fields(section)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, getattr(made, name))
    with pytest.raises(TypeError):
        section(getattr(made, name))


@pytest.mark.parametrize("section", SECTIONS)
def test_config_round_trips_through_json_without_unknown_fields(section):
    adapter = TypeAdapter(section)
    assert adapter.validate_json(adapter.dump_json(section())) == section()
    with pytest.raises(ValidationError, match="no_such_field"):
        adapter.validate_python({"no_such_field": 1})


@pytest.fixture
def config() -> Config:
    return Config(
        output=Path("there"),
        data=DataConfig(labels=("Smiling", "Male")),
        adversaries={
            "rbf": KernelConfig(features=8, loss_weight=2),
            "line": RidgeConfig(memory_batches=1),
            "net": NeuralConfig(steps=4),
        },
    )


def test_config_read_from_its_json_file_is_unchanged(config):
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_flatten_names_every_field_of_every_adversary(config):
    flat = flatten(config)
    assert flat["adversaries.rbf.features"] == 8
    assert flat["adversaries.net.kind"] == "neural"
    assert flat["data.labels"] == ["Smiling", "Male"]
    of_sections = sum(
        len(dataclasses.fields(getattr(config, name))) for name in ("data", "privatizer", "utility", "game", "runtime", "recovery")
    )
    of_sections += len(dataclasses.fields(AttackConfig)) + len(dataclasses.fields(TrackingConfig))
    of_adversaries = sum(len(dataclasses.fields(c)) for c in ADVERSARIES)
    empty = 6  # options of privatizer, utility head and data, and weights of targets and labels: without entries they are no fields
    assert len(flat) == len(dataclasses.fields(Config)) - 9 + of_sections + of_adversaries - empty


def test_override_changes_only_the_named_fields(config):
    changed = override(config, {"k": 3, "adversaries.rbf.penalties": (0.5,), "game.temperature": 0.1, "data_dir": Path("x")})
    rbf = dataclasses.replace(config.adversaries["rbf"], penalties=(0.5,))
    game = dataclasses.replace(config.game, temperature=0.1)
    expected = dataclasses.replace(config, k=3, adversaries={**config.adversaries, "rbf": rbf}, game=game, data_dir=Path("x"))
    assert changed == expected
    assert config.k == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privatizer.widht": 3}, ["'privatizer.widht'", "privatizer.width"]),
        ({"adversaries.rbf.penalty": 1}, ["'adversaries.rbf.penalty'", "adversaries.rbf.penalties"]),
        ({"adversaries.nobody.memory_batches": 1}, ["'adversaries.nobody.memory_batches'"]),
        ({"game.privacy_loss": "raw"}, ["game.privacy_loss", "'raw'", "'recovered'", "'negated_mse'"]),
        ({"k": 2.5}, ["k", "2.5", "a whole number"]),
        ({"game.gradient_norms": True, "runtime.compile": True}, ["game.gradient_norms", "runtime.compile"]),
        ({"k": 0}, ["k is 0"]),
        ({"data.crop": 2.0}, ["data.crop is 2.0"]),
        ({"adversaries.line.memory_batches": -1}, ["line", "memory_batches is -1"]),
        ({"adversaries.rbf.tune_every": 0}, ["rbf", "tune_every is 0"]),
        ({"adversaries.net.steps": 0}, ["net", "steps is 0"]),
        ({"adversaries.net.steps": "many"}, ["net", "steps", "'many'"]),
    ],
)
def test_override_with_a_bad_value_fails_in_one_short_line(config, changes, words):
    with pytest.raises(InputError) as raised:
        override(config, changes)
    assert [word for word in words if word not in str(raised.value)] == []
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 250


def test_import_of_config_imports_neither_torch_nor_ray():
    code = "import sys; sys.path[:0] = eval(sys.argv[1]); import cpgan_ray.config; print({'torch', 'ray'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code, repr(sys.path)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.parametrize(("changes", "message"), TOGETHER)
def test_settings_that_do_not_fit_together_raise(changes, message):
    with pytest.raises(InputError, match=message):
        override(Config(), changes)


@pytest.mark.parametrize(
    ("changes", "rounding", "message"),
    [
        ({"attacks.attacker_data": "photos"}, (), r"attacks\.attacker_data is photos, but the mechanisms .* own pictures only"),
        ({"utility.teachers": ["run"]}, (), r"utility\.teachers is .* needs teachers of its own: give --utility\.train-teachers"),
        ({"privatizer.levels": 3, "privatizer.quantization_step": 1}, ("off",), r"levels is 3, but rounding is off, .*: leave out"),
    ],
)
def test_comparison_refuses_what_it_cannot_compare(changes, rounding, message):
    with pytest.raises(InputError, match=message):
        ReproduceJob(config=override(Config(), changes), rounding=rounding)
