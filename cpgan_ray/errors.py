"""The one exception that means "the user can mend this": jobs print it as one line and exit with status 2."""


class InputError(ValueError):
    """Bad input: a flag, a file or a cluster that cannot be worked with.

    The message is one line that names the thing, the value got and the remedy.
    """
