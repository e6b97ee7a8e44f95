"""Tests of the release gates."""

from dataclasses import replace

import numpy as np
import pytest

from cpgan_ray.config import AttackConfig, AttackJob, Config
from cpgan_ray.data import load
from cpgan_ray.data.store import DatasetInfo
from cpgan_ray.errors import InputError
from cpgan_ray.pipelines.gates import ensure_measurable, gate_failures

LINK = {"pairs": 40, "auc": 0.6, "low": 0.55, "high": 0.65, "tar_at_1_far": 0.1}
REPORT = {
    "warnings": [],
    "privacy": {"strongest": {"r2": 0.1, "low": 0.05, "high": 0.2}},
    "identity_linkage": {
        "picture and picture": LINK | {"high": 0.99},
        "code and code": LINK | {"auc": 0.62, "high": 0.63},
        "embedding by ridge and picture": LINK,
        "mean picture and picture": LINK | {"high": 0.7},
    },
    "attributes": [
        {"name": "Male", "balanced_accuracy": 0.7, "low": 0.6, "high": 0.8},
        {"name": "Young", "balanced_accuracy": 0.5, "low": None, "high": None},
    ],
}


def failures(**gates) -> tuple[str, ...]:
    return gate_failures(REPORT, AttackJob(**gates))


def test_gate_on_r2_compares_the_upper_end_of_the_interval():
    assert failures(fail_above=0.2) == failures() == ()
    assert failures(fail_above=0.15) == ("strongest R2 0.1000, whose 95 % interval ends at 0.2000, above 0.15",)


def test_gate_on_linkage_takes_the_worst_comparison_of_codes():
    assert failures(fail_above_linkage=0.65) == ()
    expected = "linkage AUC 0.6000 of embedding by ridge and picture, whose 95 % interval ends at 0.6500, above 0.64"
    assert failures(fail_above_linkage=0.64) == (expected,)


def test_gate_on_attribute_names_value_and_limit():
    assert failures(fail_above_attribute=("Male=0.8",)) == ()
    expected = "balanced accuracy 0.7000 of attribute Male, whose 95 % interval ends at 0.8000, above 0.75"
    assert failures(fail_above_attribute=("Male=0.75",)) == (expected,)


def test_gates_on_what_was_not_measured_fail():
    (reason,) = failures(fail_above_attribute=("Young=1",))
    assert reason.startswith("attribute Young was not inferred")
    (reason,) = gate_failures(REPORT | {"identity_linkage": {}}, AttackJob(fail_above_linkage=1.0))
    assert "linkage was not measured" in reason


def test_several_gates_give_all_reasons():
    assert len(failures(fail_above=0.1, fail_above_linkage=0.5, fail_above_attribute=("Male=0.6", "Young=0.6"))) == 4


def test_degenerate_code_passes_no_gate():
    warning = {"kind": "constant", "message": "the code is constant", "fails_gates": True}
    report = REPORT | {"warnings": [warning]}
    assert gate_failures(report, AttackJob()) == ()
    assert gate_failures(report, AttackJob(fail_above_linkage=1.0)) == ("the code is constant",)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (("Male",), "fail_above_attribute is .*an attribute, = and a number"),
        (("Male=much",), "fail_above_attribute is .*an attribute, = and a number"),
        (("Male=1.5",), r"fail_above_attribute is 'Male=1.5'; the balanced accuracy must be in \[0, 1\]"),
        (("Male=-0.1",), r"must be in \[0, 1\]"),
        (("Male=0.5", "Male=0.6"), "'Male' is given twice"),
    ],
)
def test_attribute_gate_with_bad_limit_is_refused(limit, message):
    with pytest.raises(InputError, match=message):
        AttackJob(fail_above_attribute=limit)


def test_gates_that_cannot_be_measured_are_refused_early(tiny_config: Config):
    dataset = load(tiny_config, progress=False)
    ensure_measurable(AttackJob(fail_above_linkage=0.6, fail_above_attribute=("Smiling=0.9",)), dataset)
    with pytest.raises(InputError, match="the data have no attribute 'Smilng': choose from"):
        ensure_measurable(AttackJob(fail_above_attribute=("Smilng=0.9",)), dataset)
    with pytest.raises(InputError, match="attacks.attributes is off"):
        ensure_measurable(AttackJob(fail_above_attribute=("Smiling=1",), attacks=AttackConfig(attributes=False)), dataset)
    with pytest.raises(InputError, match="attacks.identity is off"):
        ensure_measurable(AttackJob(fail_above_linkage=0.6, attacks=AttackConfig(identity=False)), dataset)
    alone = replace(dataset.test, identity=np.arange(len(dataset.test)))
    unknown = (replace(dataset, test=alone), replace(dataset, info=DatasetInfo(anonymous=True)))
    for without in unknown:
        with pytest.raises(InputError, match="do not say who is on which pictures"):
            ensure_measurable(AttackJob(fail_above_linkage=0.6), without)
