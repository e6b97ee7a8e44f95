"""Tests of the resolution of names: built in, registered, of a module, of a file; and of digests and errors."""

import logging
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpgan_ray.common.plugins import Parts, absolute_name, is_code, label, own_code, parse, shipping
from cpgan_ray.common.plugins.names import PART
from cpgan_ray.errors import InputError

CODE = """
class Part:
    def __init__(self, first, *, width=1):
        self.width = first * width

def build(first, *, width=1):
    return Part(first, width=width)

def fails(first):
    numbers = [1]
    return numbers[first]
"""


def built_in(first: int) -> int:
    return first


@pytest.fixture
def parts() -> Parts:
    return Parts({"plain": built_in}, kind="thing", group="cpgan_ray.things", field="section.family")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "things.py"
    path.write_text(CODE)
    return path


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins like a new process: without files that an earlier test has used."""
    monkeypatch.setattr(shipping, "_kept", {})
    monkeypatch.setattr(shipping, "_packages", set())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """A function that makes an importable package with this code, which registers `build` as `registered`; returns its name."""
    names: list[str] = []

    def make(code: str = CODE) -> str:
        name = f"installed_{tmp_path.name.replace('-', '_')}_{len(names)}"
        folder = tmp_path / "site" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "nets.py").write_text(code)
        metadata = tmp_path / "site" / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[cpgan_ray.things]\nregistered = {name}.nets:build\n")
        names.append(name)
        return name

    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield make
    for name in [module for module in sys.modules if module.partition(".")[0] in names]:
        del sys.modules[name]


def test_built_in_name_is_its_entry_and_stays_without_digest(parts):
    assert parts["plain"] is built_in and parts.pin("plain") == "plain"
    assert parts.call("plain", 3) == 3
    assert list(parts) == ["plain"]


def test_name_of_a_file_is_pinned_and_resolved_by_its_digest(parts, file):
    name = parts.pin(f"{file}:build")
    assert name.startswith(f"{file}:build@") and len(parse(name).digest) == 16
    assert parts.call(name, 2, options={"width": 5}).width == 10
    assert parts.pin(name) == name
    assert parts[name] is parts[f"{file}:build"], "one file is one module"


def test_object_of_a_file_can_be_pickled(parts, file):
    built = parts.call(f"{file}:build", 2)
    assert pickle.loads(pickle.dumps(built)).width == 2


def test_changed_file_is_refused_by_its_old_digest(parts, file, monkeypatch):
    name = parts.pin(f"{file}:build")
    file.write_text(CODE + "\n# changed\n")
    assert parts.call(name, 1).width == 1, "this process has its content"
    monkeypatch.setattr(shipping, "_kept", {})
    with pytest.raises(InputError, match=r"things\.py has changed: its digest is \w{16}, but \w{16} was used before"):
        parts[name]


def test_shipped_copy_serves_a_node_without_the_file(parts, file, monkeypatch):
    name = parts.pin(f"{file}:build")
    (folder,) = shipping.modules()
    assert [path.name for path in Path(folder).iterdir()] == [f"{parse(name).digest}.py"]
    file.unlink()
    monkeypatch.setattr(shipping, "_kept", {})
    with pytest.raises(InputError, match=r"things\.py cannot be read on node .*No such file"):
        parts[name]
    monkeypatch.syspath_prepend(str(Path(folder).parent))
    assert parts.call(name, 3).width == 3


def test_shipped_copy_with_other_content_is_refused(parts, file, monkeypatch):
    name = parts.pin(f"{file}:build")
    (folder,) = shipping.modules()
    (Path(folder) / f"{parse(name).digest}.py").write_text("raise SystemExit")
    monkeypatch.setattr(shipping, "_kept", {})
    monkeypatch.syspath_prepend(str(Path(folder).parent))
    with pytest.raises(InputError, match="has changed"):
        parts[name]


def test_name_of_a_module_and_registered_name_lead_to_the_same_part(parts, installed):
    name = installed(CODE)
    by_place, registered = parts.pin(f"{name}.nets:build"), parts.pin("registered")
    assert parts[by_place] is parts[registered] is sys.modules[f"{name}.nets"].build
    assert registered.startswith("registered@") and parse(registered).digest == parse(by_place).digest
    assert parts.is_own("registered") and not parts.is_own("plain")


def test_listing_registered_parts_imports_nothing(parts, installed):
    name = installed("raise RuntimeError")
    assert set(parts.registered()) == {"registered"}
    assert f"{name}.nets" not in sys.modules


def test_package_on_the_path_is_shipped_whole(parts, installed, tmp_path):
    parts[f"{installed(CODE)}.nets:build"]
    assert shipping.modules() == [str(next(p for p in (tmp_path / "site").iterdir() if p.suffix != ".dist-info"))]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "plan",
            r"section\.family is 'plan'; it must be one of plain, or code of your own as FILE\.py:NAME or PACKAGE\.MODULE:NAME",
        ),
        ("{file}:bild", r"things\.py has no 'bild'; it has Part, build, fails"),
        ("{folder}/nothing.py:build", r"nothing\.py cannot be read \(No such file or directory\): correct the path"),
        ("{folder}/folder.py:build", r"folder\.py cannot be (read|used)"),
        (
            "no_such_package.nets:build",
            r"has no module 'no_such_package\.nets': install its package there, or add its folder to PYTH",
        ),
    ],
)
def test_name_that_leads_to_nothing_is_refused_in_one_line(name, message, parts, file):
    (file.parent / "folder.py").mkdir()
    with pytest.raises(InputError, match=message) as raised:
        parts.pin(name.format(file=file, folder=file.parent))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = (1,\n", r"broken\.py:1: SyntaxError: .*, while importing broken\.build"),
        ("import sys\n\nsys.exit(3)\n", r"broken\.py:3: SystemExit: 3, while importing"),
        ("import no_such_module_at_all\n", r"broken\.py:1: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("def build():\n    pass\nbuild(1)\n", r"broken\.py:3: TypeError: build\(\) takes 0 positional"),
        ("\0", r"broken\.py.*(SyntaxError|ValueError)"),
    ],
)
def test_code_that_fails_at_import_is_named_with_file_and_line(code, message, parts, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(code)
    for _ in range(2):  # a half-executed module must not stay
        with pytest.raises(InputError, match=message):
            parts[f"{path}:build"]


def test_package_that_needs_an_absent_module_names_it(parts, installed):
    name = installed("import no_such_module_at_all\n")
    with pytest.raises(InputError, match=r"nets\.py:1: ModuleNotFoundError: No module named 'no_such_module_at_all'"):
        parts[f"{name}.nets:build"]


def test_code_that_fails_when_called_has_its_traceback_in_the_log(parts, file, caplog):
    caplog.set_level(logging.DEBUG, logger="cpgan_ray")
    with pytest.raises(
        InputError, match=r"things\.py:11: IndexError: list index out of range, while calling the thing things\.fails"
    ):
        parts.call(f"{file}:fails", 4)
    assert "return numbers[first]" in caplog.text and "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda parts, file: parts.call(f"{file}:build", 1, options={"widht": 2}),
            r"section\.options has 'widht', but things\.build",
        ),
        (
            lambda parts, file: parts.call("plain", 1, options={"width": 2}),
            r"section\.options has 'width', but plain takes no options",
        ),
        (
            lambda parts, file: parts.call(f"{file}:build"),
            r"things\.build has the parameters \(first, \*, width=1\), but is called",
        ),
        (lambda parts, file: parts.call(f"{file}:__doc__", 1), r"has no '__doc__'|it must be a function or a class"),
    ],
)
def test_part_that_does_not_take_the_arguments_is_refused(call, message, parts, file):
    with pytest.raises(InputError, match=message):
        call(parts, file)


def test_errors_with_a_meaning_pass_and_others_name_the_part():
    with pytest.raises(FloatingPointError), own_code("conv", doing="testing"):
        raise FloatingPointError
    with pytest.raises(InputError, match=r"^conv: KeyError: 'x', while testing conv"), own_code("conv", doing="testing"):
        raise KeyError("x")


def test_added_part_is_known_by_its_label_only_after_it_was_added(parts, file):
    name = parts.pin(f"{file}:build")
    assert "things.build" not in parts
    built_in = parts.built_in
    assert parts.add(name) == "things.build" and parts["things.build"] is parts[name]
    assert parts.built_in == built_in and set(parts) == {*built_in, "things.build"}
    other = file.with_name("other") / "things.py"
    other.parent.mkdir()
    other.write_text(CODE + "# other\n")
    later = parts.pin(f"{other}:build")
    assert parts.add(later) == "things.build" and parts["things.build"] is parts[later] is not parts[name]


@pytest.mark.parametrize(
    ("name", "short", "code"),
    [
        ("conv", "conv", False),
        ("timm:mobilenetv3_small_050", "timm.mobilenetv3_small_050", False),
        ("a.b:c", "a.b.c", True),
        ("/x/y.z/nets.py:build@0123456789abcdef", "nets.build", True),
    ],
)
def test_label_and_kind_of_a_name(name, short, code):
    assert re.match(PART, name)
    assert (label(name), is_code(name)) == (short, code)


def test_absolute_name_changes_only_the_path_of_a_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute_name("nets.py:build") == f"{tmp_path}/nets.py:build"
    assert absolute_name("sub/nets.py:build@0123456789abcdef") == f"{tmp_path}/sub/nets.py:build@0123456789abcdef"
    assert [absolute_name(name) for name in ("conv", "a.b:c")] == ["conv", "a.b:c"]
