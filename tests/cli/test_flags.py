"""Tests of parsing command lines into jobs, and of the commands that jobs print."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpgan_ray.cli import (
    REPRODUCTION,
    SEARCH,
    command_for,
    parse,
    parse_attack,
    parse_reproduce,
    parse_search,
    parse_train,
    read_run,
)
from cpgan_ray.common.ownership import SUFFIX, sign
from cpgan_ray.config import (
    AttackJob,
    Config,
    Origin,
    ReproduceJob,
    RuntimeConfig,
    SearchJob,
    flatten,
    local_names,
    override,
    to_json,
)
from cpgan_ray.config.folders.records import FORMAT, write_record
from cpgan_ray.config.presets import PRESETS, preset
from cpgan_ray.errors import InputError
from tests.process import HANG_S

ROOT = Path(__file__).parents[2]
CHANGES = {
    "k": 48,
    "seed": 3,
    "privacy_weight": 0.37,
    "data.horizontal_flip": False,
    "data.labels": ["Smiling", "Male"],
    "privatizer.symmetric": True,
    "adversaries.ridge.penalties": [1e-3, 0.5],
    "skip_corrupt": True,
}


@pytest.mark.parametrize("name", PRESETS)
def test_command_for_run_parses_to_same_config(name):
    fields = flatten(preset(name))
    config = override(preset(name), {field: value for field, value in CHANGES.items() if field in fields})
    again = parse(shlex.split(command_for(config)), default="faces", description="")
    assert flatten(again) == flatten(config)
    assert command_for(preset(name)) == name


def test_command_for_search_omits_attacks_and_tracking():
    job, _ = parse_search(["celeba", "--data-dir", "/data", "--attacks.epochs", "9", "--k", "32"], description="")
    assert command_for(job.config) == "celeba --data-dir /data --k 32"


def test_parse_search_accepts_config_fields_without_prefix():
    job, resume = parse_search(
        ["smoke", "--num-samples", "4", "--k", "8", "--privatizer.width", "4", "--num-seeds", "2"], description=""
    )
    assert not resume
    assert (job.num_samples, job.num_seeds, job.config.k, job.config.privatizer.width) == (4, 2, 8, 4)
    assert job.config.attacks.names == ("ridge", "kernel", "mlp", "stack")
    assert job.config.attacks.kernel_features == preset("smoke").attacks.kernel_features


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke", "--num-samples", "0"], "num_samples is 0; it must be at least 1"),
        (["smoke", "--num-smaples", "3"], "'--num-smaples': did you mean --num-samples"),
        (["smoke", "--privacy-wieght", "3"], "'--privacy-wieght': did you mean --privacy-weight"),
        (["smoke", "--searcher", "bayes"], "--searcher is 'bayes'; choose from 'tpe', 'nsga2', 'random', 'grid'$"),
        (["smoke", "--max-r2", "2"], "max_r2 is 2.0; it must be at most 1"),
        (["smok"], "no preset 'smok'"),
        (["--resume"], "--resume needs the folder"),
        (["--resume", "nowhere"], "nowhere has no search.json"),
    ],
)
def test_parse_search_bad_flags_raise_named_error(arguments, message):
    with pytest.raises(InputError, match=message):
        parse_search(arguments, description="")


@pytest.fixture
def search_folder(tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    job, _ = parse_search(["smoke", "--k", "8", "--output", str(folder)], description="")
    write_record(folder / SEARCH, {"run_id": "abc", "job": to_json(job)})
    return folder


def test_parse_search_resume_keeps_original_settings(search_folder):
    job, resume = parse_search([f"--resume={search_folder}", "--max-r2", "0.1"], description="")
    assert resume
    assert (job.config.k, job.max_r2, job.config.output) == (8, 0.1, search_folder)


def test_parse_search_resume_with_other_settings_raises(search_folder):
    with pytest.raises(InputError, match=r"--k is 9, but the search in .* was started with 8: leave the flag out"):
        parse_search(["--resume", str(search_folder), "--k", "9"], description="")
    with pytest.raises(InputError, match=r"--num-seeds is 2"):
        parse_search(["--resume", str(search_folder), "--num-seeds", "2"], description="")


def test_parse_search_foreign_folder_needs_trust(search_folder):
    (search_folder / f"{SEARCH}{SUFFIX}").unlink()
    with pytest.raises(InputError, match=r"search\.json was not written by this user, .* pickled state .*: add --trust"):
        parse_search(["--resume", str(search_folder)], description="")
    job, resume = parse_search(["--resume", str(search_folder), "--trust"], description="")
    assert (job.config.k, resume) == (8, True)


def test_parse_search_resume_without_secret_requires_flag(search_folder):
    values = json.loads((search_folder / SEARCH).read_text())
    values["job"]["config"]["data_dir"] = "abfs://x/y?client_secret=***"
    (search_folder / SEARCH).write_text(json.dumps(values))
    sign(search_folder / SEARCH)
    with pytest.raises(InputError, match=r"without the secret in --data-dir abfs://x/y\?client_secret=\*+: give --data-dir again"):
        parse_search(["--resume", str(search_folder)], description="")
    job, _ = parse_search(["--resume", str(search_folder), "--data-dir", "/data"], description="")
    assert job.config.data_dir == Path("/data")


def test_parse_reproduce_foreign_folder_ignores_its_paths(tmp_path, capsys):
    folder = tmp_path / "comparison"
    folder.mkdir()
    flags = ["--tracking.uri", "http://elsewhere", "--published", "/p", "--output", str(folder), "--num-seeds", "2", "--k", "9"]
    job, _ = parse_reproduce(["digits", *flags], description="")
    write_record(folder / REPRODUCTION, {"run_id": "abc", "job": to_json(job)})
    (folder / f"{REPRODUCTION}{SUFFIX}").unlink()
    again, _ = parse_reproduce(["--resume", str(folder)], description="")
    assert (again.config.tracking.uri, again.published) == (f"sqlite:///{Path('outputs/mlflow.db').resolve()}", None)
    assert (again.num_seeds, again.config.k, again.config.output) == (2, 9, folder)
    stderr = capsys.readouterr().err
    assert re.fullmatch(
        r"warning: \S+ was not written by this user: published, .*tracking\.uri.* add --trust to use what it says\n", stderr
    )
    trusted, _ = parse_reproduce(["--resume", str(folder), "--trust"], description="")
    assert (trusted.config.tracking.uri, trusted.published) == ("http://elsewhere", Path("/p"))
    sign(folder / REPRODUCTION)
    own, _ = parse_reproduce(["--resume", str(folder)], description="")
    assert own == dataclasses.replace(trusted, config=dataclasses.replace(trusted.config, trust=False))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "parse_resumed"),
    [("config.json", parse_train), (SEARCH, parse_search), (REPRODUCTION, parse_reproduce)],
)
def test_resume_deeply_nested_json_raises_one_line_error(name, parse_resumed, tmp_path):
    (tmp_path / name).write_text("[" * 200_000)
    more = {"default": "smoke"} if parse_resumed is parse_train else {}
    with pytest.raises(InputError, match=rf"{name} is damaged \(it is nested too deeply\)"):
        parse_resumed(["--resume", str(tmp_path)], description="", **more)


def parts(hint):
    """The types inside a type hint; keys of dictionaries are left out, because Config checks them."""
    if hasattr(hint, "__metadata__"):
        yield from parts(hint.__origin__)
    elif get_origin(hint) is dict:
        yield from parts(get_args(hint)[1])
    elif get_origin(hint) is Literal:
        yield Literal
    elif inner := get_args(hint):
        for argument in inner:
            yield from parts(argument)
    else:
        yield hint


def texts(kind, path=""):
    """Dotted names of the fields that may contain any text or path, and their marks. Fields inside a LOCAL field are LOCAL too."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marks = {mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Origin)}
        if name.startswith("__"):
            continue
        if marks or {*parts(hint)} & {str, Path, Any, object}:
            yield path + name, marks
        for part in parts(hint) if Origin.LOCAL not in marks else ():
            if dataclasses.is_dataclass(part):
                yield from texts(part, f"{path}{name}.")


@pytest.mark.parametrize("kind", [Config, AttackJob, SearchJob, ReproduceJob])
def test_text_and_path_fields_declare_their_origin(kind):
    marks_of = dict(texts(kind))
    assert {"data_dir", "config.data_dir"} & marks_of.keys()
    assert [name for name, marks in marks_of.items() if len(marks) != 1] == []
    assert all(dict(texts(RuntimeConfig)).values()), "fields inside a LOCAL field must be marked, for the reader"
    named = ("dir", "uri", "output", "checkpoints", "address", "published", "against", "undefended", "cache")
    path_fields = [name for name in marks_of if name.rpartition(".")[2].endswith(named)]
    assert [name for name in path_fields if marks_of[name] != {Origin.LOCAL}] == []
    assert set(local_names(kind)) == {name for name, marks in marks_of.items() if marks == {Origin.LOCAL}}


def test_parse_search_moved_or_damaged_folder_raises(search_folder, tmp_path):
    moved = search_folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"begun in .*search: move it back"):
        parse_search(["--resume", str(moved)], description="")
    (moved / SEARCH).write_text('{"run_id": "abc"')
    with pytest.raises(InputError, match=r"search\.json is damaged"):
        parse_search(["--resume", str(moved)], description="")


VALUES = st.recursive(  # no subnormal numbers, because jobs of other tests make this process flush them to zero
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=5) | st.just("9" * 5000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.data(), st.sampled_from([*PRESETS]))
def test_read_run_fuzzed_config_raises_one_line_error_or_parses(tmp_path_factory, data, name):
    folder = tmp_path_factory.getbasetemp()
    values = to_json(preset(name)) | {"format": FORMAT, "run_id": "0" * 32, "store": "/nowhere"}
    if data.draw(st.booleans()):
        inner = values
        while isinstance(inner[key := data.draw(st.sampled_from(sorted(inner)))], dict) and inner[key] and data.draw(st.booleans()):
            inner = inner[key]
        inner[key] = data.draw(VALUES)
        content = json.dumps(values).encode()
    else:
        content = json.dumps(values).encode()
        at = data.draw(st.integers(0, len(content)))
        content = content[:at] + data.draw(st.binary(max_size=3)) + content[at + data.draw(st.integers(0, 3)) :]
    (folder / "config.json").write_bytes(content)
    message = ""
    try:
        config, run_id = read_run(folder)
        assert parse(shlex.split(command_for(config)), default="faces", description="").k == config.k
        assert run_id is None or isinstance(run_id, str)
    except InputError as e:
        message = str(e)
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize("job", ["frontier.py", "train_celeba.py"])
def test_job_with_closed_stdout_exits_without_traceback(job):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "jobs" / job), "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=HANG_S, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("flag", ["--no-attacks.identity", "--attacks.no-identity"])
def test_negated_flag_in_either_form_switches_off(flag):
    assert not parse(["smoke", flag], default="faces", description="").attacks.identity


@pytest.mark.parametrize("job", ["train_celeba", "tune_celeba", "attack", "reproduce", "frontier"])
def test_help_shows_the_main_flags_and_help_all_every_flag(job):
    shown = {}
    for flag in ("--help", "--help-all"):
        command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), flag]
        shown[flag] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    main = set(re.findall(r"^  (--[\w.-]+)", shown["--help"], re.MULTILINE))
    every = set(re.findall(r"(--[\w.-]+)", shown["--help-all"]))
    assert {"--output", "--help-all", "--log-level"} <= main
    assert main - every <= {"--resume", "--trust", "--log-level", "--help-all"}
    assert len(shown["--help"].splitlines()) < 100


@pytest.mark.parametrize(("arguments", "status", "lines"), [(["--log-level", "error"], 0, 0), (["--log-level=loud"], 2, 1)])
def test_log_level_of_a_job_hides_lines_or_is_refused(arguments, status, lines, tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "reproduce.py"), "gaussian", "--theory", "--lambdas", "1", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (status, lines)


def test_preset_given_as_a_flag_is_refused_with_its_place():
    with pytest.raises(InputError, match="the preset is the first word"):
        parse(["--preset", "celeba"], default="faces", description="")


@pytest.mark.parametrize("joined", [True, False])
def test_command_of_an_encoder_keeps_its_credentials(joined, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    command = "my_encoder --model https://alice:secret-of-alice@models/e"
    flags = [f"--encoder.command={command}"] if joined else ["--encoder.command", command]
    target, job = parse_attack(flags, description="", fetch=Path)
    assert (job.encoder.command, target.black_box) == (command, command)
    assert target.name == "my_encoder --model https://***@models/e"
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
