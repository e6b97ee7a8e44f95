"""The Python interface: its documented examples run, importing it is cheap, and bad input is one line."""

import doctest
import subprocess
import sys
import time

import pytest

import cpgan_ray
from cpgan_ray.errors import InputError


def test_examples_of_the_interface_run_as_written(tmp_path, cache_dir, mlflow_uri, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    variables = {"folder": tmp_path / "run", "cache": cache_dir}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for function in (cpgan_ray.train, cpgan_ray.attack, cpgan_ray.load_privatizer, cpgan_ray.load_report):
        (test,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs=variables)
        assert test.examples
        runner.run(test, clear_globs=False)
        variables = test.globs
    assert runner.summarize(verbose=False).failed == 0


def test_import_takes_under_half_a_second_and_loads_nothing_heavy():
    code = "import sys, cpgan_ray; print(*(n for n in ('torch', 'ray', 'mlflow', 'numpy', 'pydantic') if n in sys.modules))"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
        assert ran.stdout.split() == []
    assert min(seconds) < 0.5


def test_every_public_name_is_there_and_documented():
    for name in cpgan_ray.__all__:
        assert getattr(cpgan_ray, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        cpgan_ray.tain  # noqa: B018


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: cpgan_ray.train(), "give one of the two"),
        (lambda folder: cpgan_ray.train(resume=folder), "has no config.json"),
        (lambda folder: cpgan_ray.attack(folder), "has no config.json"),
        (lambda folder: cpgan_ray.attack(__file__, fail_abov=0.1), "no setting 'fail_abov'"),
        (lambda folder: cpgan_ray.load_privatizer(folder), "is not a file"),
        (lambda folder: cpgan_ray.load_report(folder), "has no report"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)


def test_load_report_of_another_json_file_names_the_missing_field(tmp_path):
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(InputError, match=r"report\.json is not a report \(it has no field 'privacy'\): give the output folder"):
        cpgan_ray.load_report(tmp_path)
