"""Exceptions with a meaning: bad input (one line, exit status 2), a lost player (rollback); and what their messages may show."""

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


class InputError(ValueError):
    """Bad input: a flag, a file or a cluster that cannot be worked with.

    The message is one line that names the thing, the value got and the remedy. Names and values may come from elsewhere: control
    characters in them are shown as escapes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class LostError(RuntimeError):
    """A player does not answer any more: its process, its node or an object is gone, or it missed its deadline."""
