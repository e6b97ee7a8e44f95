"""Exceptions with a meaning: the user can mend this (one line, exit status 2); a player is gone (the game goes back and on)."""

from cpgan_ray.common.text import printable


class InputError(ValueError):
    """Bad input: a flag, a file or a cluster that cannot be worked with.

    The message is one line that names the thing, the value got and the remedy. Names and values may come from elsewhere: control
    characters in them are shown as escapes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class LostError(RuntimeError):
    """A player does not answer any more: its process, its node or an object is gone, or it missed its deadline."""
