"""Names of parts: their four forms, without importing what they select."""

import os
from dataclasses import dataclass
from pathlib import Path

DIGEST = r"(?:@[0-9a-f]{16})?"
DOTTED = r"[A-Za-z_]\w*(?:\.\w+)*"
PART = rf"^(?:[\w.+-]{{1,60}}|{DOTTED}:{DOTTED}|[^:@\x00-\x1f]+\.py:{DOTTED}){DIGEST}$"
"""A name of a part, as a regular expression."""
PART_WORDS = "a built-in name, a name that an installed package registers, PACKAGE.MODULE:NAME or FILE.py:NAME"
LIBRARIES = ("timm",)
"""Sources that are libraries with many networks: `timm:mobilenetv3_small_050` names a network, not an object of a module."""
OBJECT = "object"
"""Source of a part that was given as a Python object."""


@dataclass(frozen=True)
class Reference:
    """A name of a part, taken apart."""

    source: str  # a built-in or registered name, a module, or a file
    attribute: str = ""  # the object in the module or file; empty for a built-in or registered name
    digest: str = ""  # of the file, if the name is pinned

    @property
    def is_file(self) -> bool:
        return bool(self.attribute) and self.source.endswith(".py")

    @property
    def text(self) -> str:
        """The name, without its digest."""
        return f"{self.source}:{self.attribute}" if self.attribute else self.source


def parse(name: str) -> Reference:
    """The parts of a name that has one of the four forms."""
    text, _, digest = name.partition("@")
    source, _, attribute = text.rpartition(":") if ":" in text else (text, "", "")
    return Reference(source, attribute, digest)


def label(name: str) -> str:
    """A short form for metrics, files and tables: `conv`, `nets.build` for `/home/me/nets.py:build@0123456789abcdef`."""
    reference = parse(name)
    source = Path(reference.source).stem if reference.is_file else reference.source
    return f"{source}.{reference.attribute}" if reference.attribute else source


def is_code(name: str) -> bool:
    """Whether the name leads to code that someone names by its place: resolving it runs that code."""
    reference = parse(name)
    return bool(reference.attribute) and reference.source not in LIBRARIES


def absolute_name(name: str) -> str:
    """The same name with an absolute path, if it is one of a file."""
    reference = parse(name)
    if not reference.is_file:
        return name
    path = absolute_path(reference.source)
    return f"{path}:{reference.attribute}" + (f"@{reference.digest}" if reference.digest else "")


def absolute_path(path: str) -> str:
    """The path from the root, with `~` expanded. Links stay, so that nothing is read."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (pathlib raises if `~` or a link leads nowhere)


def pinned_name(name: str, digest: str) -> str:
    """The name with this digest."""
    return f"{parse(name).text}@{digest}"


def stored_name(name: str) -> str:
    """A name that does not depend on the place of a file: the label of code, with its digest; a built-in name unchanged."""
    reference = parse(name)
    return f"{label(name)}@{reference.digest}" if reference.attribute else name
