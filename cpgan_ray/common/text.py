"""Text that comes from elsewhere, made fit to be shown."""

import unicodedata
from collections.abc import Mapping
from typing import Any

INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that a terminal acts on instead of showing: control and format characters (among them those that reverse the
direction of writing), lone surrogates, line and paragraph separators."""


def printable(text: str) -> str:
    """The text with escapes, such as \\x1b, in place of characters that would act on a terminal instead of being shown; tabs and
    line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\t\n" or unicodedata.category(c) not in INVISIBLE else _escaped(c) for c in text)


def printable_values(value: Any) -> Any:
    """Nested mappings and lists with every text in them made printable."""
    if isinstance(value, Mapping):
        return {printable_values(name): printable_values(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
