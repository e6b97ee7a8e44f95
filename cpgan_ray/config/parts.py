"""Types of the fields that select a part by its name (common/plugins/), and of its options.

A name is checked only by its form, because the parts themselves need torch. The job resolves it before it writes anything.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import pydantic
from tyro.constructors import PrimitiveConstructorSpec

from cpgan_ray.common.json_files import parse_json
from cpgan_ray.common.plugins.names import PART, PART_WORDS, is_code
from cpgan_ray.config.constraints import text_like

PartName = Annotated[str, text_like(PART, PART_WORDS)]
"""A name of a part."""


def read_options(text: str) -> dict[str, Any]:
    """The options in the text of a flag.

    Raises: ValueError if it is not a JSON object.
    """
    try:
        options = parse_json(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"{text:.60} is not a JSON object such as '{{\"width\": 32}}'")
    return options


Options = Annotated[
    dict[str, pydantic.JsonValue],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: read_options(words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda options: [json.dumps(options)],
    ),
]
"""Keyword arguments for the code of a part, as a JSON object."""


def code_names(config: Any) -> Iterator[tuple[str, str]]:
    """Dotted field and name, of every name that leads to code in the configuration of a run, or of a job around it."""
    mechanisms = [("mechanisms", name) for name in getattr(config, "mechanisms", ())]
    config = getattr(config, "config", config)
    names = [("privatizer.family", config.privatizer.family), ("utility.family", config.utility.family)]
    names += [(f"adversaries.{name}.kind", adversary.kind) for name, adversary in config.adversaries.items()]
    names += [("data.dataset", config.data.dataset), *(("attacks.names", name) for name in config.attacks.names), *mechanisms]
    yield from ((field, name) for field, name in names if is_code(name))
