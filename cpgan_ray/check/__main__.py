"""The command line of the checks."""

import dataclasses
import inspect
import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cpgan_ray import check, cli
from cpgan_ray.common.plugins import absolute_name, label
from cpgan_ray.config.constraints import PositiveInt, config_class
from cpgan_ray.config.parts import Options, PartName
from cpgan_ray.errors import InputError

Kind = Literal["privatizer", "head", "adversary", "attack", "mechanism", "dataset"]
FIRST_PARAMETERS: dict[tuple[str, ...], Kind] = {
    ("config", "image_shape"): "privatizer",
    ("config", "context"): "adversary",
    ("data", "config"): "attack",
    ("folder", "data"): "dataset",
    ("source", "data"): "dataset",
}
"""Names of the first parameters -> the kind of part."""


@config_class("check")
class CheckJob:
    """The settings of the checks."""

    name: tyro.conf.Positional[Annotated[PartName, tyro.conf.arg(metavar="NAME")]]
    """The part: FILE.py:NAME, PACKAGE.MODULE:NAME, or with --kind a built-in or registered name."""
    kind: Kind | None = None
    """Which kind of part it is. Default: by the names of its parameters, or its type."""
    options: Options = field(default_factory=dict)
    """Its keyword arguments, as a JSON object."""
    image_size: PositiveInt = 32
    """Side of the drawn pictures, in pixels."""
    channels: PositiveInt = 3
    """Number of channels of the drawn pictures."""
    k: PositiveInt = 8
    """Length of the codes."""
    data_dir: Path | None = None
    """Folder that a data set is read from."""


def kind_of(name: str, part: Any) -> Kind:
    """The kind of a part, by the names of its parameters or its type.

    Raises: InputError if neither shows it.
    """
    from cpgan_ray.data.small import SmallDataset
    from cpgan_ray.data.sync.node import Recipe
    from cpgan_ray.mechanisms import Mechanism

    if isinstance(part, Mechanism):
        return "mechanism"
    if isinstance(part, SmallDataset | Recipe):
        return "dataset"
    try:
        parameters = tuple(inspect.signature(part).parameters)
    except (TypeError, ValueError):
        parameters = ()
    if parameters[:2] in FIRST_PARAMETERS:
        return FIRST_PARAMETERS[parameters[:2]]
    if parameters[:1] == ("config",) and {"k", "num_logits"} <= set(parameters):
        return "head"
    raise InputError(
        f"{label(name)} has the parameters ({', '.join(parameters)}), which belong to no kind of part: say with --kind which it is"
    )


def run(job: CheckJob) -> bool:
    """Run the checks and print a line for each; whether all have passed."""
    from cpgan_ray.check.adversaries import check_adversary
    from cpgan_ray.check.attacks import check_attack
    from cpgan_ray.check.data import check_dataset, check_mechanism
    from cpgan_ray.check.findings import Findings
    from cpgan_ray.check.material import Material
    from cpgan_ray.check.networks import check_head, check_privatizer
    from cpgan_ray.common.plugins import loading, parse
    from cpgan_ray.common.process import set_up_process

    set_up_process(threads=1)
    name = absolute_name(job.name)
    if job.kind is None and not (reference := parse(name)).attribute:
        raise InputError(f"{name} is a built-in or registered name: say with --kind which kind of part it is")
    kind = job.kind or ("privatizer" if name.startswith("timm:") else kind_of(name, loading.load(reference)[0]))
    material = Material((job.image_size, job.image_size, job.channels), job.k)
    print(f"{label(name)} as {kind}")
    findings = Findings(name)
    match kind:
        case "privatizer":
            check_privatizer(findings, name, job.options, material)
        case "head":
            check_head(findings, name, job.options, material)
        case "adversary":
            check_adversary(findings, name, job.options, material)
        case "attack":
            check_attack(findings, name, material)
        case "mechanism":
            check_mechanism(findings, name)
        case "dataset":
            folder = None if job.data_dir is None else job.data_dir.expanduser().resolve()
            check_dataset(findings, name, job.options, folder)
    return not findings.failed


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        raise InputError("nothing to check: give a part, such as nets.py:build")
    base = dataclasses.replace(CheckJob(name="none"), name="none")
    job = cli.read_flags(CheckJob, base, words, usage=check.__doc__ or "")
    if job.name == "none":
        raise InputError("nothing to check: give a part, such as nets.py:build")
    passed = run(job)
    sys.stdout.flush()
    if not passed:
        sys.exit(cli.FAILED)


if __name__ == "__main__":
    cli.run(main)
