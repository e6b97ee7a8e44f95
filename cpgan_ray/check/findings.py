"""The result of the checks, line by line."""

from collections.abc import Callable
from typing import Any

from cpgan_ray.common.plugins import part_error
from cpgan_ray.errors import InputError


class CheckError(Exception):
    """A check has failed; the message says how."""


class Findings:
    """Runs checks and prints a line for each."""

    def __init__(self, name: str, *, show: Callable[[str], None] = print) -> None:
        self.name, self.show = name, show
        self.failed: list[str] = []

    def check(self, what: str, call: Callable[[], Any]) -> Any:
        """The value of a check, or None if it fails. A text is shown as a remark."""
        try:
            value = call()
        except (CheckError, InputError) as e:
            return self.fail(what, str(e))
        except Exception as e:
            return self.fail(what, str(part_error(self.name, e, doing="checking")))
        self.show(f"ok    {what}" + (f": {value}" if isinstance(value, str) else ""))
        return value

    def fail(self, what: str, reason: str) -> None:
        self.failed.append(what)
        self.show(f"FAIL  {what}: {' '.join(reason.split())}")


def require(condition: bool, reason: str) -> None:
    """Raises: CheckError with the reason if the condition does not hold."""
    if not condition:
        raise CheckError(reason)
