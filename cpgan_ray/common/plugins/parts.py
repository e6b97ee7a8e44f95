"""All parts of one kind by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from cpgan_ray.common.plugins import loading
from cpgan_ray.common.plugins.errors import own_code
from cpgan_ray.common.plugins.names import OBJECT, Reference, label, parse, pinned_name
from cpgan_ray.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Parts(dict[str, T]):
    """The built-in parts of one kind; a name that is none of them is looked up as a registered part or as code.

    `parts[name]` is the part; iteration goes over the built-in names, then the added ones.
    """

    def __init__(
        self,
        entries: Mapping[str, T],
        *,
        kind: str,
        group: str,
        field: str,
        libraries: Mapping[str, Callable[[str], T]] | None = None,
    ) -> None:
        """kind: one word for messages; group: of the entry points; field: of the configuration that names a part; libraries: source
        (`timm`) -> function from a name in that library to a part."""
        super().__init__(entries)
        self.kind, self.group, self.field, self.libraries = kind, group, field, dict(libraries or {})
        self.added: dict[str, T] = {}

    def __missing__(self, name: str) -> T:
        reference = parse(name)
        if reference.attribute and reference.source in self.libraries:
            return self.libraries[reference.source](reference.attribute)
        return self.resolve(name)[0]

    def pin(self, name: str) -> str:
        """The name with the digest of the file that it leads to; a built-in name unchanged.

        Raises: InputError if there is no such part, or its code cannot be imported.
        """
        reference = parse(name)
        if name in self or (reference.attribute and reference.source in self.libraries):
            self[name]  # an unknown network of a library is refused
            return name
        digest = self.resolve(name)[1]
        return pinned_name(name, digest) if digest else name

    def resolve(self, name: str) -> tuple[T, str]:
        reference = parse(name)
        if reference.attribute and reference.source == OBJECT:
            from cpgan_ray.common.plugins.objects import family_of_object

            return family_of_object(reference), reference.digest  # pyright: ignore[reportReturnType]
        if reference.attribute:
            return loading.load(reference)
        if (entry := self.registered().get(reference.source)) is None:
            names = ", ".join(dict.fromkeys([*self, *self.registered()]))
            more = f", {', '.join(f'{source}:NAME' for source in self.libraries)}" if self.libraries else ""
            raise InputError(
                f"{self.field} is {name!r:.80}; it must be one of {names}{more}, or code of your own as FILE.py:NAME or "
                "PACKAGE.MODULE:NAME"
            )
        module, _, attribute = entry.value.partition(":")
        return loading.load(Reference(module.strip(), attribute.partition("[")[0].strip(), reference.digest))

    def add(self, name: str) -> str:
        """Make a part of the user's own available under its label in this process, and return the label; a built-in name unchanged.

        For kinds whose names are written to files that may come from other users: a label in such a file runs no code. A part that
        an earlier job in this process has added under the same label is replaced.
        """
        if name in self:
            return name
        short, part = label(name), self[name]
        self.added[short] = self[short] = part
        return short

    @property
    def built_in(self) -> list[str]:
        """The built-in names, whatever jobs have added in this process."""
        return [name for name in self if name not in self.added]

    def registered(self) -> "dict[str, EntryPoint]":
        """Name -> entry point, of the parts that installed packages have registered. Nothing is imported."""
        from importlib.metadata import entry_points  # takes a tenth of the time of a job's --help

        return {entry.name: entry for entry in entry_points(group=self.group)}

    def is_own(self, name: str) -> bool:
        """Whether a part is neither built in nor of a library."""
        reference = parse(name)
        return name not in self and not (reference.attribute and reference.source in self.libraries)

    def call(self, name: str, *arguments: Any, options: Mapping[str, Any] | None = None, **keywords: Any) -> Any:
        """The result of a part that is a function or a class. options: further keyword arguments, which the user has set.

        Raises: InputError if the part does not take these arguments, or with file and line if its code fails.
        """
        part: Any = self[name]
        options = dict(options or {})
        self.ensure_takes(name, part, arguments, keywords, options)
        if not self.is_own(name):
            return part(*arguments, **keywords, **options)
        with own_code(name, doing=f"calling the {self.kind}"):
            return part(*arguments, **keywords, **options)

    def ensure_takes(
        self, name: str, part: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """Raises: InputError if a part cannot be called with these arguments."""
        if not callable(part):
            raise InputError(f"{self.field} {label(name)} is {type(part).__name__}; it must be a function or a class")
        try:
            signature = inspect.signature(part)
        except (TypeError, ValueError):  # compiled code may have none
            return
        section = self.field.rpartition(".")[0]
        accepted = [p for p in signature.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names = [p.name for p in accepted[len(arguments) :] if p.name not in keywords]
        anything = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        unknown = [] if anything else [option for option in options if option not in names]
        if unknown:
            raise InputError(
                f"{section}.options has {unknown[0]!r}, but {label(name)} takes {', '.join(names) or 'no options'}: leave it out"
            )
        try:
            signature.bind(*arguments, **keywords, **options)
        except TypeError as e:
            given = ", ".join([*(type(a).__name__ for a in arguments), *(f"{k}=" for k in keywords)])
            raise InputError(
                f"{self.field} {label(name)} has the parameters {signature}, but is called with ({given}): {e}; see "
                "docs/extending.md"
            ) from e
