"""The defender: encoder and utility head with their optimisers; one step of the privatizer's side of the game."""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cpgan_ray.common.process import autocast, compile_networks, torch_stream
from cpgan_ray.common.registry import remember
from cpgan_ray.common.rng import stream
from cpgan_ray.common.types import Metrics
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset
from cpgan_ray.data.pca import projection
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.models.privatizers import Whitening
from cpgan_ray.models.statistics import norm_layers, refresh_statistics
from cpgan_ray.training.losses import of_classes, utility_loss, utility_mass

LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + float(np.cos(np.pi * done))),
    "steps": lambda done: 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01,
}
"""Share of the peak rate, by the share of the run that is done."""
remember(__name__, "LR_SCHEDULES")
GRADIENT_NORMS = ("utility/grad_norm", "privacy/grad_norm")


def to_input(pictures: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, C) from the store -> float32 (B, C, H, W): uint8 pictures in [-1, 1], float32 values as they are."""
    x = torch.from_numpy(pictures)
    if device.type == "cuda":
        x = x.pin_memory()
    x = x.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x


def corrupt_inputs(x: Tensor, config: Config, *, round: int, num_rows: int, own: slice) -> Tensor:
    """What the privatizer sees of the pictures (B, C, H, W) of a training round: noisy, and with a grey square over them, where the
    configuration wants that. Drawn for the whole batch of `num_rows`; `own`: which of them these are."""
    d = config.data
    if d.input_noise:
        drawn = stream(config.seed, "input noise", round).standard_normal((num_rows, *x.shape[1:]), np.float32)[own]
        x = x + d.input_noise * torch.from_numpy(drawn).to(x.device)
    if d.cutout:
        sides = x.shape[2:]
        first = stream(config.seed, "cutout", round).integers(sides, size=(num_rows, 2))[own] - d.cutout // 2  # may begin outside
        down, right = (np.arange(side) - start[:, None] for side, start in zip(sides, first.T, strict=True))
        covered = ((down >= 0) & (down < d.cutout))[:, :, None] & ((right >= 0) & (right < d.cutout))[:, None, :]
        x = x.masked_fill(torch.from_numpy(covered[:, None]).to(x.device), 0.0)
    return x


def fit_input(privatizer: nn.Module, dataset: Dataset) -> None:
    """Give a privatizer that looks at principal components those of the training samples."""
    for part in privatizer.modules():
        if isinstance(part, Whitening):
            basis = projection(dataset, components=len(part.mean), progress=False)
            part.fit(basis.mean, basis.components, basis.coordinates)


class DataParallelGroup(Protocol):
    """Those that share a batch, each with a copy of the defender, as one of them sees them: all make the same calls in the same
    order. Alone, or parallel.Group."""

    count: int
    rank: int

    def local_slice(self, num_rows: int) -> slice:
        """Which of so many rows are this one's."""
        ...

    def gather(self, part: Tensor, num_rows: int) -> Tensor:
        """Everybody's rows, in order, from this one's."""
        ...

    def total(self, value: Tensor) -> Tensor:
        """The sum of what each has."""
        ...

    def average(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The mean of what each has, for each of some tensors."""
        ...

    def wrap_ddp(self, network: nn.Module) -> nn.Module:
        """What is called in training in the place of a network: it normalises and draws as if the whole batch were here, and
        its parameters' gradients are the mean of everybody's."""
        ...


class SingleProcess:
    """The whole batch is here."""

    count, rank = 1, 0

    def local_slice(self, num_rows: int) -> slice:
        return slice(0, num_rows)

    def gather(self, part: Tensor, num_rows: int) -> Tensor:
        return part

    def total(self, value: Tensor) -> Tensor:
        return value

    def average(self, values: Sequence[Tensor]) -> list[Tensor]:
        return list(values)

    def wrap_ddp(self, network: nn.Module) -> nn.Module:
        return network


@dataclass
class Pending:
    """Codes that were released and await their step."""

    code: Tensor  # (B, k), with its graph; of this one's rows, where there are peers
    copies: dict[str, Tensor] = field(default_factory=dict)  # the parameters that the graph leads to; none: the encoder's own
    grad: Tensor | None = None  # (B, k) of the utility loss


def utility_gradient(pending: Pending, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of the utility loss alone, at the parameters that the codes' graph leads to; the graph is kept."""
    found = torch.autograd.grad(pending.code, leaves, pending.grad, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]


def gradient_norms(of_utility: Sequence[Tensor], leaves: Sequence[Tensor]) -> Metrics:
    """Euclidean norms of the utility's gradient, and of what the whole one is beside it: the weighted privacy term's."""
    whole = [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves]
    rest = [a - b for a, b in zip(whole, of_utility, strict=True)]
    parts = zip(GRADIENT_NORMS, (of_utility, rest), strict=True)
    return {name: float(torch.cat([g.flatten() for g in some]).norm()) for name, some in parts}


class Defender:
    """Minimises L_U + privacy_weight * P over the privatizer, and L_U over the utility head.

    A round is `release`, `utility`, `step`: the code's graph is kept between them, and the utility's half of its gradient is
    taken while the adversaries still work on theirs. With `ahead` the next codes are released before the step on the last ones;
    theirs is then a delayed gradient, the one at the weights that they were released with.

    With peers it gets the pictures and labels of its own rows. The gradients of its parameters are the mean over all peers, so each
    takes that of `peers.count` times its share of the loss.
    """

    def __init__(
        self,
        config: Config,
        *,
        image_shape: tuple[int, int, int],
        positive_share: np.ndarray,
        total_rounds: int,
        device: torch.device,
        peers: DataParallelGroup | None = None,
        pictures: Callable[[], Iterable[Tensor]] | None = None,
    ) -> None:
        """pictures: batches of training pictures (B, C, H, W), from which the batch norm statistics of the released weights are
        computed; None: the running ones of training are released."""
        self.config, self.device, self.peers = config, device, peers or SingleProcess()
        self.pictures = pictures
        self.handed_out: nn.ModuleDict | None = None
        with torch_stream(config.seed, "privatizer", "weights"):
            privatizer = build_privatizer(config.privatizer, k=config.k, image_shape=image_shape)
            head = build_head(config.utility, k=config.k, num_labels=len(positive_share), image_shape=image_shape)
        self.net = nn.ModuleDict({"privatizer": privatizer, "head": head}).to(device)
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.positive_share = torch.from_numpy(positive_share).float().to(device) if config.utility.class_weighted_loss else None
        p, u = config.privatizer, config.utility
        self.optimisers = {
            "privatizer": torch.optim.AdamW(privatizer.parameters(), lr=p.learning_rate, weight_decay=p.weight_decay),
            "head": torch.optim.AdamW(head.parameters(), lr=u.learning_rate, weight_decay=p.weight_decay),
        }
        rate = LR_SCHEDULES[p.lr_schedule]
        self.schedules = {
            name: torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate(min(1.0, step / total_rounds)))
            for name, o in self.optimisers.items()
        }
        averaging = get_ema_multi_avg_fn(p.ema_decay)
        self.averaged = AveragedModel(self.net, multi_avg_fn=averaging, use_buffers=True) if p.ema_decay else None
        self.wrapped = {name: self.peers.wrap_ddp(part) for name, part in self.net.items()}
        self.pending: deque[Pending] = deque()
        if config.runtime.compile:
            compile_networks(privatizer, head)

    def release(self, x: Tensor, *, ahead: bool = False) -> Tensor:
        """Codes (B, k) of pictures (B, C, H, W), detached; the graph to them is kept for `step`.

        With `ahead` those released before keep their turn: `utility` and `step` take the oldest. By the time of its step the
        parameters will have moved, so the graph leads to copies of them; the batch statistics are the encoder's own.
        """
        encoder = self.net.train()["privatizer"]
        with autocast(self.device, self.config.precision):
            if ahead:
                copies = {name: p.detach().clone().requires_grad_() for name, p in encoder.named_parameters()}
                pending = Pending(functional_call(encoder, copies, (x,)), copies)
            else:
                self.pending.clear()
                pending = Pending(self.wrapped["privatizer"](x))
        self.pending.append(pending)
        return pending.code.detach()

    def utility(self, y: Tensor, *, round: int) -> tuple[float, Tensor]:
        """Loss and logits on the codes whose turn it is; leaves the gradients for the head and for the codes.

        Raises: FloatingPointError where the loss is not finite.
        """
        pending = self.pending[0]
        z = pending.code.detach().requires_grad_()
        self.optimisers["head"].zero_grad(set_to_none=True)
        with torch_stream(self.config.seed, "head", round), autocast(self.device, self.config.precision):
            logits = self.wrapped["head"](z).float()
        loss = utility_loss(logits, y, positive_share=self.positive_share)
        mass = utility_mass(y, of_one_label=of_classes(logits, y), positive_share=self.positive_share)
        share = mass / self.peers.total(mass)
        value = float(self.peers.total(loss.detach() * share))
        if not np.isfinite(value):
            raise FloatingPointError(f"the utility loss is {value} in round {round}: lower the learning rates")
        loss.backward(share * self.peers.count)
        pending.grad = z.grad
        return value, logits.detach()

    def step(self, grad_z: Tensor | None, *, move_head: bool = True) -> Metrics:
        """One step on the gradient of L_U plus `grad_z` (B, k), that of the weighted privacy term, of all peers' rows.

        Returns the norms of both over the encoder's parameters, where the configuration wants them.
        """
        pending = self.pending.popleft()
        assert pending.grad is not None
        self.optimisers["privatizer"].zero_grad(set_to_none=True)
        leaves = list(pending.copies.values()) or list(self.net["privatizer"].parameters())
        of_utility = utility_gradient(pending, leaves) if self.config.game.gradient_norms else None
        if grad_z is not None:
            pending.grad = pending.grad + self.peers.count * grad_z[self.peers.local_slice(len(grad_z))]
        pending.code.backward(pending.grad)
        norms = gradient_norms(of_utility, leaves) if of_utility is not None else {}
        copied = {name: copy.grad for name, copy in pending.copies.items() if copy.grad is not None}
        for name, grad in zip(copied, self.peers.average(list(copied.values())), strict=True):
            self.net["privatizer"].get_parameter(name).grad = grad
        self.handed_out = None
        self.optimisers["privatizer"].step()
        self.schedules["privatizer"].step()
        if move_head:
            self.step_head()
        if self.averaged is not None:
            self.averaged.update_parameters(self.net)
        return norms

    def step_head(self) -> None:
        """One step of the utility head on the gradient that `utility` left."""
        self.handed_out = None
        self.optimisers["head"].step()
        self.schedules["head"].step()

    @property
    def released(self) -> nn.ModuleDict:
        """What is handed out and evaluated: a copy of the present weights (of the averaged ones, if there are any) with batch norm
        statistics of their own."""
        if self.handed_out is None:
            self.handed_out = self.with_own_statistics(self.net if self.averaged is None else self.averaged.module)
        return self.handed_out

    @torch.no_grad()
    def with_own_statistics(self, net: nn.Module) -> nn.ModuleDict:
        """A copy of privatizer and head whose batch norms have the statistics of these very weights on training pictures."""
        net = copy.deepcopy(net).eval()
        assert isinstance(net, nn.ModuleDict)
        if self.pictures is not None and norm_layers(net):
            refresh_statistics(net["privatizer"], self.pictures())
            refresh_statistics(net["head"], (net["privatizer"](x) for x in self.pictures()))
        return net

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, k) and logits (B, L) of the weights that are handed out."""
        net = self.released
        z = net["privatizer"](x)
        return z, net["head"](z)

    @torch.no_grad()
    def current_codes(self, x: Tensor) -> Tensor:
        """Codes (B, k) as a release of the current weights would have them (batch statistics); nothing is changed by it."""
        encoder = self.net["privatizer"].train()
        norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 0.0
            with autocast(self.device, self.config.precision):
                return encoder(x)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on. Nothing may be pending."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a `state_dict`, whatever was pending."""
        self.pending.clear()
        self.handed_out = None
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"net": self.net, **{f"optimiser/{n}": o for n, o in self.optimisers.items()}}
        parts |= {f"schedule/{n}": s for n, s in self.schedules.items()}
        if self.averaged is not None:
            parts["averaged"] = self.averaged
        return parts
