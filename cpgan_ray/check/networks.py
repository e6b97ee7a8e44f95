"""Checks of privatizers and utility heads."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cpgan_ray.check.findings import Findings, require
from cpgan_ray.check.material import Material
from cpgan_ray.common.optimisers import AdamW
from cpgan_ray.common.process import torch_stream
from cpgan_ray.config import PrivatizerConfig, UtilityConfig
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.models.export import StoredInputPrivatizer, export_program
from cpgan_ray.training.checkpoint import pack, unpack

NUM_LOGITS = 3


@dataclass(frozen=True)
class Subject:
    """A network to check: how to build it, its inputs, and the width of its outputs."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    width: int
    role: str


def check_privatizer(findings: Findings, name: str, options: dict[str, Any], material: Material) -> None:
    """The stages behind the project's bottleneck, normalisation and rounding, as they are trained and exported."""
    config = PrivatizerConfig(family=name, options=options)
    height, width, channels = material.image_shape

    def inputs(count: int) -> Tensor:
        pixels = material.pictures(count, "inputs").view(count, height, width, channels).permute(0, 3, 1, 2)
        return pixels.clamp(-1, 1).contiguous()

    subject = Subject(
        lambda: build_privatizer(config, k=material.k, image_shape=material.image_shape), inputs, material.k, "privatizer"
    )
    check_network(findings, subject)


def check_head(findings: Findings, name: str, options: dict[str, Any], material: Material) -> None:
    """A classifier of three labels on the codes."""
    config = UtilityConfig(family=name, options=options)
    subject = Subject(
        lambda: build_head(config, k=material.k, num_logits=NUM_LOGITS, image_shape=material.image_shape),
        lambda count: material.codes(material.pictures(count, "inputs")),
        NUM_LOGITS,
        "utility head",
    )
    check_network(findings, subject)


def check_network(findings: Findings, subject: Subject) -> None:
    network = findings.check("builds", lambda: built(subject))
    if network is None:
        return
    if findings.check("shapes", lambda: shapes(network, subject)) is None:
        return
    findings.check("gradients", lambda: gradients(network, subject))
    findings.check("determinism", lambda: determinism(subject))
    findings.check("each row on its own in evaluation", lambda: rows(network, subject))
    findings.check("snapshot and restore", lambda: restored(subject))
    findings.check("export", lambda: exported(network, subject))


def built(subject: Subject) -> nn.Module:
    with torch_stream(0, "check"):
        return subject.build()


def shapes(network: nn.Module, subject: Subject) -> str:
    for training in (True, False):
        network.train(training)
        for count in (2, 7):
            out = network(subject.inputs(count))
            require(
                tuple(out.shape) == (count, subject.width) and out.dtype == torch.float32,
                f"{out.dtype} {tuple(out.shape)} for {count} inputs; it must be float32 ({count}, {subject.width})",
            )
            require(bool(out.isfinite().all()), "the output is not finite")
    return (
        f"{tuple(subject.inputs(2).shape[1:])} -> ({subject.width},), {sum(p.numel() for p in network.parameters()):,} parameters"
    )


def gradients(network: nn.Module, subject: Subject) -> str:
    network.train().zero_grad(set_to_none=True)
    x = subject.inputs(8).requires_grad_()
    weights = torch.linspace(-1, 1, 8 * subject.width).view(8, subject.width)
    (network(x) * weights).sum().backward()
    require(x.grad is not None and bool(x.grad.abs().sum() > 0), "the output does not depend on the input")
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    unused = [name for name, p in trained.items() if p.grad is None]
    require(not unused, f"{len(unused)} parameters get no gradient, the first is {unused[:1]}: remove them, or use them in forward")
    bad = [name for name, p in trained.items() if not bool(p.grad.isfinite().all())]  # pyright: ignore[reportOptionalMemberAccess]
    require(not bad, f"the gradient of {bad[:1]} is not finite")
    return f"{len(trained)} trained parameters"


def output(network: nn.Module, x: Tensor) -> Tensor:
    with torch_stream(1, "check"), torch.no_grad():
        return network(x)


def determinism(subject: Subject) -> None:
    first, second, x = built(subject).train(), built(subject).train(), subject.inputs(8)
    weights, others = first.state_dict(), second.state_dict()
    differing = [name for name in weights if not torch.equal(weights[name], others[name])]
    require(not differing, f"{differing[:1]} differs for the same seed: draw weights from torch's global generator only")
    require(torch.equal(output(first, x), output(second, x)), "equal weights, inputs and seeds give different outputs in training")
    require(torch.equal(output(first.eval(), x), output(first, x)), "two evaluations of the same input differ")


def rows(network: nn.Module, subject: Subject) -> None:
    x = subject.inputs(8)
    network.eval()
    together, alone = output(network, x), torch.cat([output(network, row[None]) for row in x])
    difference = float((together - alone).abs().max())
    require(
        difference < 1e-3, f"a row's output changes by {difference:.2g} with the other rows of the batch, although in evaluation"
    )


def step(network: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor) -> None:
    with torch_stream(2, "check"):
        optimiser.zero_grad(set_to_none=True)
        network.train()(x).square().sum().backward()
        optimiser.step()


def restored(subject: Subject) -> None:
    first, x = built(subject), subject.inputs(8)
    optimiser = AdamW(first.parameters(), lr=1e-3)
    step(first, optimiser, x)
    state = unpack(pack({"network": first.state_dict(), "optimiser": optimiser.state_dict()}), torch.device("cpu"))
    second = copy.deepcopy(built(subject))
    other = AdamW(second.parameters(), lr=1e-3)
    second.load_state_dict(state["network"])
    other.load_state_dict(state["optimiser"])
    for network, its_optimiser in ((first, optimiser), (second, other)):
        step(network, its_optimiser, x)
    require(
        torch.equal(output(first.eval(), x), output(second.eval(), x)),
        "a network that is restored from a snapshot continues differently: keep everything that changes in parameters and buffers",
    )


def exported(network: nn.Module, subject: Subject) -> str:
    whole = StoredInputPrivatizer(network) if subject.role == "privatizer" else network
    program = export_program(copy.deepcopy(whole).eval(), subject.inputs(2), what=subject.role)
    torch.export.save(program, buffer := io.BytesIO())
    size = len(buffer.getvalue())
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    network.eval()
    for count in (1, 5):
        x = subject.inputs(count)
        difference = float((loaded(x).detach() - output(network, x)).abs().max())
        require(difference < 1e-4, f"the exported program differs by {difference:.2g} for a batch of {count}")
    return f"a program of {size / 1000:,.0f} kB for any batch size"
