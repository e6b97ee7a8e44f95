"""Makes text from other sources safe to print."""

from collections.abc import Mapping
from typing import Any

from cpgan_ray.errors import printable


def printable_values(value: Any) -> Any:
    """Nested mappings and lists with every string in them made printable."""
    if isinstance(value, Mapping):
        return {printable_values(name): printable_values(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value
