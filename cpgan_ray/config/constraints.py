"""Configuration classes whose values are checked against constraints declared with their types (`k: PositiveInt`).

Pydantic checks them, both when an object is made in Python and when it is read from a file; a violation is one line that names the
field, the value and what it must be.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

import pydantic
from pydantic import ConfigDict, Field, ValidationError, create_model

from cpgan_ray.errors import InputError

PositiveInt = Annotated[int, Field(ge=1)]
"""At least 1."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
"""In [0, 1)."""
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
"""In (0, 1)."""
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
"""In (0, 1]."""
ClosedFraction = Annotated[float, Field(ge=0, le=1)]
"""In [0, 1]."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Above 0 and finite."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""At least 0 and finite."""

REQUIREMENTS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "finite",
    "too_short": "at least {min_length} long",
    "string_pattern_mismatch": "{pattern}",
    "literal_error": "one of {expected}",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
}
"""Pydantic's type of an error -> what the value must be."""

C = TypeVar("C")
_words_of_patterns: dict[str, str] = {}


def text_like(pattern: str, words: str) -> Any:
    """The constraint that a text matches a regular expression; `words` say the same in a message."""
    _words_of_patterns[pattern] = words
    return Field(pattern=pattern)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config_class(section: str = "") -> Callable[[type[C]], type[C]]:
    """Make a frozen, keyword-only dataclass whose declared constraints hold; cross-field checks go into its `__post_init__`.

    section: the dotted name under which a message names its fields.
    """

    def decorate(cls: type[C]) -> type[C]:
        check_fields_together: Callable[[Any], None] | None = vars(cls).get("__post_init__")

        def __post_init__(self: Any) -> None:
            check_constraints(self, section)
            if check_fields_together is not None:
                check_fields_together(self)

        cls.__post_init__ = __post_init__  # pyright: ignore[reportAttributeAccessIssue]
        cls.__pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportAttributeAccessIssue]
        return dataclass(frozen=True, kw_only=True)(cls)

    return decorate


def check_constraints(config: Any, section: str) -> None:
    """Check a configuration. A list in a field with constraints becomes what the field holds: a tuple, or names
    with weights.

    Raises: InputError that names the first field whose value violates its constraints.
    """
    model = _model_of(type(config))
    try:
        valid = model(**{name: getattr(config, name) for name in model.model_fields})
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        name = str(first["loc"][0])
        where = f"{section}.{name}" if section else name
        must = "each must be" if len(first["loc"]) > 1 else "it must be"
        raise InputError(f"{where} is {getattr(config, name)!r}; {must} {requirement(first)}") from e
    for name in model.model_fields:
        if isinstance(getattr(config, name), list):
            object.__setattr__(config, name, getattr(valid, name))


def requirement(error: Any) -> str:
    """What a value must be, of one of pydantic's errors; pydantic's own words for a kind that has none here."""
    if (text := REQUIREMENTS.get(error["type"])) is None:
        return f"valid ({error['msg']})"
    context = {name: f"{v:g}" if isinstance(v, int | float) else v for name, v in error.get("ctx", {}).items()}
    if "pattern" in context:
        context["pattern"] = _words_of_patterns[context["pattern"]]
    return text.format(**context)


@cache
def _model_of(kind: type[Any]) -> type[pydantic.BaseModel]:
    """A model of the fields that have constraints; made once because it takes a thousand times as long as a check."""
    hints = get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {
        name: (hint, ...) for name, hint in hints.items() if not name.startswith("__") and _is_constrained(hint)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* shadows an attribute in parent", UserWarning)  # a field may be called `register`
        return create_model(kind.__name__, __config__=ConfigDict(arbitrary_types_allowed=True), **fields)


def _is_constrained(hint: Any) -> bool:
    """Whether a type hint, or a part of it, has a constraint of pydantic or annotated_types."""
    own = any(type(extra).__module__.startswith(("pydantic", "annotated_types")) for extra in getattr(hint, "__metadata__", ()))
    return own or any(_is_constrained(part) for part in getattr(hint, "__args__", ()))
