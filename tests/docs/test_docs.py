"""On every page links resolve, commands parse, and the named files, make targets and modules exist.

Words in capitals in a command stand for values that the reader fills in (`DIR`, `RUN_FOLDER`); here they become paths of a fixture.
"""

import functools
import re
import shlex
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft7Validator

from cpgan_ray import cli
from cpgan_ray.common.metric_names import DICTIONARY
from cpgan_ray.common.ownership import KEY_VARIABLE
from cpgan_ray.config import ReproduceJob, SearchJob, SeedsJob, to_json
from cpgan_ray.config.folders.jobs import SEEDS
from cpgan_ray.config.folders.records import write_record
from cpgan_ray.config.folders.runs import CONFIG
from cpgan_ray.config.presets import for_comparison, for_search, preset
from cpgan_ray.config.search_space import dimensions
from cpgan_ray.errors import InputError

ROOT = Path(__file__).parents[2]
README_LINES = 200
PAGES_OUTSIDE_DOCS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "cluster/README.md")
PAGES = [ROOT / name for name in PAGES_OUTSIDE_DOCS] + sorted((ROOT / "docs").rglob("*.md"))
FIRST_SENTENCE = re.compile(r"This page is for .+?\.\s", re.DOTALL)
"""How a page in docs/ begins, below its title."""
RUN_ID = "0" * 32

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))

# ------------------------------------------------------------------------------------------------------ the parts of a page

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")


@functools.cache
def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text())


@functools.cache
def code_lines(page: Path) -> list[str]:
    """Every line of the code blocks, with continued lines joined, and every piece of code in a sentence."""
    blocks = "".join(FENCE.findall(page.read_text()))
    return [*re.sub(r"\\\n\s*", "", blocks).splitlines(), *(" ".join(piece.split()) for piece in CODE.findall(prose(page)))]


def anchor(heading: str) -> str:
    """The anchor that code hosts give a heading: lower case, hyphens for spaces, no punctuation."""
    text = LINK.sub(lambda m: m[0].split("]")[0].lstrip("!["), heading).strip().lower()
    characters = (c for c in text if c in "-_ " or unicodedata.category(c)[0] in "LN")
    return "".join(characters).replace(" ", "-")


@functools.cache
def anchors(page: Path) -> set[str]:
    """The anchors of all headings of a page; the second heading with the same name gets `-1`."""
    names: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        name = anchor(heading)
        names.append(f"{name}-{names.count(name)}" if name in names else name)
    return set(names)


def link_error(page: Path, link: str) -> str | None:
    """What is wrong with a relative link, None if nothing is. Addresses on the web are not checked."""
    if re.match(r"[a-z]+:", link):
        return None
    name, _, fragment = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return f"{link}: no such file"
    if fragment and (target.suffix != ".md" or fragment not in anchors(target)):
        return f"{link}: no such heading"
    return None


def repository_paths(page: Path) -> set[str]:
    """Files of the repository that a page names in its code blocks or in code within a sentence."""
    words = {word for line in code_lines(page) for word in line.split()}
    return {word for word in words if re.fullmatch(r"(cpgan_ray|tests|jobs|cluster|docs|examples)/[\w./-]*\w", word)}


# ------------------------------------------------------------------------------------------------------------- tests of the checks


@pytest.mark.parametrize(
    ("link", "error"),
    [
        ("docs/cli.md", None),
        ("docs/cli.md#exit-status", None),
        ("#limits", None),
        ("https://example.org/nowhere", None),
        ("docs/nowhere.md", "no such file"),
        ("docs/cli.md#nowhere", "no such heading"),
        ("#nowhere", "no such heading"),
        ("../../etc/passwd", "no such file"),
    ],
)
def test_link_error_names_what_does_not_exist(link, error):
    message = link_error(ROOT / "README.md", link)
    assert message is None if error is None else message is not None and message.endswith(error)


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("C3b: by the game, not only", "c3b-by-the-game-not-only"),
        ("report.json", "reportjson"),
        ("A `code` name_x", "a-code-name_x"),
    ],
)
def test_anchor_equals_that_of_code_hosts(heading, name):
    assert anchor(heading) == name


# ------------------------------------------------------------------------------------------------------------------- the pages


def test_readme_stays_below_its_line_limit():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@each_page
def test_links_of_a_page_resolve(page):
    links = LINK.findall(CODE.sub("", prose(page)))
    assert [error for link in links if (error := link_error(page, link))] == []


def test_docs_index_links_every_page():
    index = ROOT / "docs" / "README.md"
    pages = {p.resolve() for p in (ROOT / "docs").rglob("*.md")} - {index}
    linked = {
        (start.parent / link.partition("#")[0]).resolve()
        for start in (index, ROOT / "docs/results/README.md")
        for link in LINK.findall(prose(start))
    }
    assert pages - linked == set()


@pytest.mark.parametrize("page", [p for p in PAGES if p.is_relative_to(ROOT / "docs")], ids=lambda path: path.name)
def test_page_in_docs_begins_with_its_readers(page):
    title, _, rest = page.read_text().partition("\n\n")
    assert re.fullmatch(r"# .+", title)
    assert FIRST_SENTENCE.match(rest), rest[:80]


@each_page
def test_files_named_in_a_page_exist(page):
    generated = (ROOT / ".gitignore").read_text().splitlines()
    assert [name for name in sorted(repository_paths(page)) if not ((ROOT / name).exists() or name in generated)] == []


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_entries_of_a_tree_exist(name):
    (tree,) = (block for block in FENCE.findall((ROOT / name).read_text()) if block.startswith("cpgan_ray/\n"))
    missing, parent = [], ROOT
    for line in tree.splitlines():
        indent, names = re.match(r"( *)(.*?)(?:  .*|(?<=[/\w]) {3}.*)?$", line).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if len(indent) > 2:
            continue  # the second line of a description
        parent = ROOT if not indent else ROOT / "cpgan_ray"
        missing += [entry for entry in names.split() if not (parent / entry).exists()]
    assert missing == []


def test_outputs_page_lists_exactly_the_existing_metrics():
    text = (ROOT / "docs" / "outputs.md").read_text().partition("## Metrics")[2]
    assert re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE) == list(DICTIONARY)


# ---------------------------------------------------------------------------------------------------------------- make, modules


def make_words(page: Path) -> set[str]:
    """Targets and variables (with a `=`) of all make commands on a page."""
    calls = [call for line in code_lines(page) for call in re.findall(r"(?:^|&& )make ([^#&;|]+)", line)]
    return {re.sub("=.*", "=", word) for call in calls for word in call.split()}


@each_page
def test_make_targets_of_a_page_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    variables = {f"{name}=" for name in re.findall(r"\$\((\w+)\)", makefile)}
    assert sorted(make_words(page) - targets - variables) == []


@each_page
def test_modules_that_a_page_runs_exist(page):
    modules = {name for line in code_lines(page) for name in re.findall(r"python -m (cpgan_ray[\w.]*)", line)}
    missing = [
        name
        for name in modules
        if (spec := find_spec(name)) is None or spec.submodule_search_locations and not find_spec(f"{name}.__main__")
    ]
    assert missing == []


# -------------------------------------------------------------------------------------------------------------------- commands


def parse_train(arguments: list[str]) -> None:
    cli.take_check(arguments)
    if cli.parse_seeds(arguments, default="faces", description="") is None:
        cli.parse_train(arguments, default="faces", description="")


def parse_search(arguments: list[str]) -> None:
    job, resumed = cli.parse_search(arguments, description="")
    if not resumed:
        dimensions(job.search_space, job.config, grid=job.searcher == "grid")


PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "jobs/train_celeba.py": parse_train,
    "jobs/attack.py": lambda arguments: cli.parse_attack(arguments, description="", fetch=Path),
    "jobs/export.py": lambda arguments: cli.parse_export(arguments, description="", fetch=Path, resolve=str),
    "jobs/serve.py": lambda arguments: cli.parse_serve(arguments, description=""),
    "jobs/tune_celeba.py": parse_search,
    "jobs/frontier.py": lambda arguments: cli.parse_frontier(arguments, description=""),
    "jobs/reproduce.py": lambda arguments: cli.parse_reproduce(arguments, description=""),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The value of each word in capitals; the folders have this user's signature."""
    folder = tmp_path_factory.mktemp("filled")
    run, search, comparison, seeds = folders = [folder / name for name in ("run", "search", "comparison", "seeds")]
    for path in folders:
        path.mkdir()
    config = preset("celeba")
    (run / "privatizer.pt2").write_bytes(b"")
    (folder / "encoder.pt2").write_bytes(b"")
    (folder / "encoder.onnx").write_bytes(b"")
    search_job = SearchJob(config=replace(for_search(config), output=search))
    comparison_job = ReproduceJob(config=replace(for_comparison(preset("mnist")), output=comparison))
    values = {
        "DIR": str(folder / "data"),
        "RUN_FOLDER": str(run),
        "CONFIG.json": str(run / CONFIG),
        "SEARCH_FOLDER": str(search),
        "COMPARISON_FOLDER": str(comparison),
        "SEEDS_FOLDER": str(seeds),
        "encoder.pt2": str(folder / "encoder.pt2"),
        "encoder.onnx": str(folder / "encoder.onnx"),
        "models:/faces@champion": str(run),
        "RUN_ID": str(run),  # the files of an MLflow run are downloaded into such a folder
        "EXPERIMENT": "cpgan",
        "GRIDS_FILE": str(folder / "grids.json"),
        "PRESET": "gaussian_kernel",
        "DATASET": "mnist",
        "M": "10",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, "0" * 64)
        write_record(run / CONFIG, to_json(config) | {"run_id": RUN_ID})
        write_record(search / cli.SEARCH, {"run_id": RUN_ID, "job": to_json(search_job)})
        write_record(comparison / cli.REPRODUCTION, {"run_id": RUN_ID, "job": to_json(comparison_job)})
        write_record(seeds / SEEDS, {"run_id": RUN_ID, "job": to_json(SeedsJob(config=replace(config, output=seeds)))})
        yield values


def job_commands(page: Path) -> Iterator[list[str]]:
    """`jobs/NAME.py` and its arguments in each command line of a page, even behind `ray job submit`. A job's name without `python`
    is no command."""
    for line in code_lines(page):
        words = shlex.split(line, comments=True) if "jobs/" in line and "python" in line else []
        for n, word in enumerate(words[1:], start=1):
            if word.startswith("jobs/") and words[n - 1].endswith("python"):
                yield words[n:]


def test_pages_have_a_command_of_every_job():
    scripts = {command[0] for page in PAGES for command in job_commands(page)}
    assert scripts == {f"jobs/{path.name}" for path in (ROOT / "jobs").glob("*.py")} == set(PARSERS)


@functools.cache
def command_error(script: str, *arguments: str) -> str | None:
    """What is wrong with a job's command line, None if nothing is. A line on several pages is parsed once."""
    try:
        PARSERS[script](list(arguments))
    except InputError as e:
        return f"{shlex.join([script, *arguments])}: {e}"
    except SystemExit as e:  # --help
        return f"{script} ended with status {e.code}" if e.code else None
    return None


def test_command_error_of_an_unknown_flag_suggests_a_flag():
    assert "did you mean --epochs" in str(command_error("jobs/train_celeba.py", "smoke", "--epoch", "2"))


@each_page
def test_commands_of_a_page_parse(page, filled):
    commands = [(script, *(filled.get(word, word) for word in arguments)) for script, *arguments in job_commands(page)]
    assert [error for command in commands if (error := command_error(*command))] == []


# ------------------------------------------------------------------------------------------------- files that repeat each other


def test_workflow_and_hooks_run_the_commands_of_ci():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert steps == re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert lint is not None
    assert [hook["entry"] for hook in hooks] == [line.strip().replace("$(BIN)", ".venv/bin") for line in lint[1].splitlines()]


@pytest.mark.parametrize(
    ("file", "schema"),
    [("CITATION.cff", "vendor.citation-file-format"), (".github/workflows/ci.yml", "vendor.github-workflows")],
)
def test_file_matches_its_schema(file, schema):
    content = {"on" if key is True else key: value for key, value in yaml.safe_load((ROOT / file).read_text()).items()}
    assert [error.message for error in Draft7Validator(get_builtin_schema(schema)).iter_errors(content)] == []


def test_citation_has_the_version_and_licence_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
