"""Text that comes from elsewhere, made fit to be shown."""

import unicodedata

INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that a terminal acts on instead of showing: control and format characters (among them those that reverse the
direction of writing), lone surrogates, line and paragraph separators."""


def printable(text: str) -> str:
    """The text with escapes, such as \\x1b, in place of characters that would act on a terminal instead of being shown; tabs and
    line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\t\n" or unicodedata.category(c) not in INVISIBLE else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
