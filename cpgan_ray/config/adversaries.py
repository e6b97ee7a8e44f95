"""Which adversaries play: `--adversaries ridge rbf mlp=2 decoder=4`, names with how many of each.

A copy is an adversary of its own: its name (`decoder-2`) selects its random stream, its actor, its metrics and its flags.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cpgan_ray.common.plugins.names import absolute_name
from cpgan_ray.common.registry import remember
from cpgan_ray.config.players import BUILT_IN_ADVERSARIES, AdversaryConfig, KernelConfig, NeuralConfig, OwnConfig
from cpgan_ray.config.schema import NAME, Config
from cpgan_ray.errors import InputError

MAX_COPIES = 64
"""Largest number of copies of one adversary."""
NAMED_ADVERSARIES: dict[str, AdversaryConfig] = {
    **{kind: config() for kind, config in BUILT_IN_ADVERSARIES.items()},
    "rbf": KernelConfig(bandwidths=(1.0,), penalties=(1e-3,)),
    "fourier": KernelConfig(features=1024),
    "mlp": NeuralConfig(architecture="mlp", width=512, steps=3, components=256),
    "decoder": NeuralConfig(architecture="conv"),
    "upsample": NeuralConfig(architecture="upsample"),
    "resnet": NeuralConfig(architecture="resnet"),
}
"""Name -> settings, in a configuration that has no adversary of this name: the kinds, and names that presets give."""
remember(__name__, "NAMED_ADVERSARIES")


def choose_adversaries(config: Config, *, words: Sequence[str] = (), kinds: Mapping[str, str] | None = None) -> Config:
    """The configuration with other adversaries.

    words: the ones that play, `NAME` or `NAME=COUNT`, in this order; empty: those of the configuration. One that the configuration
    has keeps its settings; others get those of `NAMED_ADVERSARIES`. kinds: name -> kind, of adversaries that are added or changed;
    the kind of a name with a count is that of all its copies.

    Raises: InputError for a word that is not valid, a name that is given twice, or one that has neither settings nor a kind.
    """
    kinds = kinds or {}
    names = read_words(words)
    chosen = {name: _settings(name, config, kinds) for name in names} if words else dict(config.adversaries)
    of_copies = {stem(name) for name in names} - {*names}
    added = {name: kind for name, kind in kinds.items() if name not in of_copies}
    return replace(config, adversaries=chosen | {name: of_kind(chosen.get(name), kind) for name, kind in added.items()})


def read_words(words: Sequence[str]) -> list[str]:
    """The names of the adversaries that words `NAME` or `NAME=COUNT` select: `decoder=2` is `decoder-1` and `decoder-2`.

    Raises: InputError for a word that is not valid, or a name that is given twice.
    """
    names: list[str] = []
    for word in words:
        name, equals, count = word.partition("=")
        if not re.fullmatch(NAME, name):
            raise InputError(
                f"--adversaries: {name!r} cannot be the name of an adversary: use 1 to 60 letters, digits or any of _+-, and give "
                "code by --adversaries.NAME.kind"
            )
        if equals and not (re.fullmatch("[0-9]{1,9}", count) and 1 <= int(count) <= MAX_COPIES):
            raise InputError(f"--adversaries: {word!r} has the count {count!r}; it must be 1 to {MAX_COPIES}, such as {name}=2")
        names += [f"{name}-{i}" for i in range(1, int(count) + 1)] if equals else [name]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--adversaries: {twice!r} is given twice: for two of them give a count, such as {stem(twice)}=2")
    return names


def stem(name: str) -> str:
    """The name without the number of a copy: `decoder` for `decoder-2`."""
    return re.sub(r"-[0-9]+$", "", name)


def of_kind(settings: AdversaryConfig | None, kind: str) -> AdversaryConfig:
    """The settings if they have this kind, else the defaults of the kind."""
    if settings is not None and settings.kind == kind:
        return settings
    return BUILT_IN_ADVERSARIES[kind]() if kind in BUILT_IN_ADVERSARIES else OwnConfig(kind=absolute_name(kind))


def _settings(name: str, config: Config, kinds: Mapping[str, str]) -> AdversaryConfig:
    known = {**NAMED_ADVERSARIES, **config.adversaries}
    settings, kind = known.get(name, known.get(stem(name))), kinds.get(name, kinds.get(stem(name)))
    if kind is not None:
        return of_kind(settings, kind)
    if settings is None:
        raise InputError(
            f"--adversaries: there is no adversary {stem(name)!r}; choose from {', '.join(known)}, or add its kind with "
            f"--adversaries.{stem(name)}.kind"
        )
    return settings


def words_for(config: Config, base: Config) -> tuple[list[str], dict[str, str]]:
    """The words and kinds with which `choose_adversaries` makes from `base` a configuration with the names, the order and the kinds
    of the adversaries of `config`. No words if `base` has the same names."""
    names = list(config.adversaries)
    words = [] if names == list(base.adversaries) else names
    known = {**NAMED_ADVERSARIES, **base.adversaries}
    settings = {name: known.get(name, known.get(stem(name))) for name in names}
    kinds = {
        name: adversary.kind
        for name, adversary in config.adversaries.items()
        if (before := settings[name]) is None or before.kind != adversary.kind
    }
    return words, kinds
