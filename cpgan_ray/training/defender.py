"""The defender: privatizer and utility head with their optimisers, and their part of a round."""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cpgan_ray.common.noise import noise_of
from cpgan_ray.common.optimisers import AdamW
from cpgan_ray.common.process import autocast, compile_networks, torch_stream
from cpgan_ray.common.registry import remember
from cpgan_ray.common.types import Metrics
from cpgan_ray.config import Config, PrivatizerConfig
from cpgan_ray.config.players import ANSWERS
from cpgan_ray.data.task import Task
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.models.answers import answer_shares
from cpgan_ray.models.statistics import norm_layers, refresh_statistics
from cpgan_ray.training.data_parallel import DataParallelGroup, SingleProcess
from cpgan_ray.training.label_weights import label_weights
from cpgan_ray.training.losses import distillation_loss, utility_loss, utility_normalizer, wrong_answers

LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + float(np.cos(np.pi * done))),
    "steps": lambda done: 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01,
}
"""Name -> function from the completed share of the run to the share of the peak learning rate."""
remember(__name__, "LR_SCHEDULES")
GRADIENT_NORMS = ("utility/grad_norm", "privacy/grad_norm")


def scheduled_optimiser(
    parameters: Iterable[nn.Parameter], config: PrivatizerConfig, *, learning_rate: float, total_rounds: int
) -> tuple[AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """The optimiser of every network that learns the task, in the game and in all mechanisms that a comparison trains, with its
    learning rate schedule, which makes one step per round.

    AdamW: without weight decay it is Adam, the optimiser of the published methods; with weight decay it decays all weights equally,
    whereas L2 in Adam's gradient would decay weights with large gradients less (I. Loshchilov, F. Hutter, ICLR 2019).
    """
    optimiser = AdamW(parameters, lr=learning_rate, weight_decay=config.weight_decay)
    rate = LR_SCHEDULES[config.lr_schedule]
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(min(1.0, step / total_rounds)))


def averaged_copy(net: nn.Module, config: PrivatizerConfig) -> AveragedModel | None:
    """The moving average of the weights that is released at the end; None if the last weights are released."""
    averaging = get_ema_multi_avg_fn(config.ema_decay)
    return AveragedModel(net, multi_avg_fn=averaging, use_buffers=True) if config.ema_decay else None


@dataclass
class Pending:
    """Released codes that have not been used for a step yet."""

    code: Tensor  # (B, k), with its graph; only the rows of this process
    copies: dict[str, Tensor] = field(default_factory=dict)  # the parameters in the graph; empty: the encoder's own
    grad: Tensor | None = None  # (B, k) of the utility loss


def utility_gradient(pending: Pending, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradient of only the utility loss with respect to the parameters in the codes' graph; keeps the graph."""
    grads = torch.autograd.grad(pending.code, leaves, pending.grad, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)]


def gradient_norms(utility_grads: Sequence[Tensor], leaves: Sequence[Tensor]) -> Metrics:
    """Euclidean norms of the utility's gradient and of the remaining gradient, which is the weighted privacy term's."""
    total = [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves]
    privacy_grads = [a - b for a, b in zip(total, utility_grads, strict=True)]
    parts = zip(GRADIENT_NORMS, (utility_grads, privacy_grads), strict=True)
    return {name: float(torch.cat([g.flatten() for g in grads]).norm()) for name, grads in parts}


def inputs_of(x: Tensor, noise: Tensor | None) -> tuple[Tensor, ...]:
    """The arguments of a privatizer."""
    return (x,) if noise is None else (x, noise)


class Defender:
    """Minimises L_U + privacy_weight * P over the privatizer, and L_U over the utility head.

    A round is `release`, `utility`, `step`. The code's graph is kept between them, and the utility's part of its gradient is
    computed while the adversaries compute their part. With `ahead` the next codes are released before the step on the last codes;
    their gradient is then delayed: it is the gradient at the weights with which they were released.

    With peers it gets only the pictures and labels of its own rows. Gradients of its parameters are averaged over all peers;
    therefore each peer differentiates `peers.count` times its share of the loss.
    """

    def __init__(
        self,
        config: Config,
        *,
        image_shape: tuple[int, int, int],
        task: Task,
        positive_share: np.ndarray,
        total_rounds: int,
        device: torch.device,
        peers: DataParallelGroup | None = None,
        pictures: Callable[[], Iterable[Tensor]] | None = None,
    ) -> None:
        """positive_share: see `utility_loss`; used if the configuration weights classes.
        pictures: batches of training pictures (B, C, H, W), from which the batch norm statistics of the released weights are
        computed. None: release the running statistics of training."""
        self.config, self.task, self.device, self.peers = config, task, device, peers or SingleProcess()
        self.pictures = pictures
        self._released: nn.ModuleDict | None = None
        with torch_stream(config.seed, "privatizer", "weights"):
            privatizer = build_privatizer(config.privatizer, k=config.k, image_shape=image_shape)
            head = build_head(config.utility, k=config.k, num_logits=task.num_logits, image_shape=image_shape)
        self.net = nn.ModuleDict({"privatizer": privatizer, "head": head}).to(device)
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.positive_share = torch.from_numpy(positive_share).float().to(device) if config.utility.class_weighted_loss else None
        weights = label_weights(config.utility, task)
        self.label_weights = None if weights is None else torch.from_numpy(weights).to(device)
        p, u = config.privatizer, config.utility
        pairs = {
            "privatizer": scheduled_optimiser(privatizer.parameters(), p, learning_rate=p.learning_rate, total_rounds=total_rounds),
            "head": scheduled_optimiser(head.parameters(), p, learning_rate=u.learning_rate, total_rounds=total_rounds),
        }
        self.optimisers = {name: optimiser for name, (optimiser, _) in pairs.items()}
        self.schedules = {name: schedule for name, (_, schedule) in pairs.items()}
        self.averaged = averaged_copy(self.net, p)
        self.wrapped = {name: self.peers.wrap_ddp(part) for name, part in self.net.items()}
        self.pending: deque[Pending] = deque()
        if config.runtime.compile:
            compile_networks(privatizer, head)

    def release(self, x: Tensor, *, noise: Tensor | None = None, ahead: bool = False) -> Tensor:
        """Codes (B, k) of pictures (B, C, H, W), detached; their graph is kept for `step`.

        noise: of the codes, (B, k); None if they have none.

        With `ahead` earlier codes stay pending: `utility` and `step` use the oldest. The parameters will have changed by the time
        of the step, so the graph contains copies of them; the batch statistics are the encoder's own.
        """
        encoder, inputs = self.net.train()["privatizer"], inputs_of(x, noise)
        with autocast(self.device, self.config.precision):
            if ahead:
                copies = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in encoder.named_parameters()}
                pending = Pending(functional_call(encoder, copies, inputs), copies)
            else:
                self.pending.clear()
                pending = Pending(self.wrapped["privatizer"](*inputs))
        self.pending.append(pending)
        return pending.code.detach()

    def utility(self, y: Tensor, *, round: int, soft: Tensor | None = None) -> tuple[float, Tensor]:
        """Loss and logits on the oldest pending codes; sets the gradients of the head and of the codes. y: (B, L), see
        `utility_loss`. soft: the teachers' answers (B, num_logits), if there are teachers, see `distillation_loss`.

        Raises: FloatingPointError if the loss is not finite.
        """
        pending = self.pending[0]
        z = pending.code.detach().requires_grad_()
        self.optimisers["head"].zero_grad(set_to_none=True)
        hard = self.config.utility.family == ANSWERS
        with torch_stream(self.config.seed, "head", round), autocast(self.device, self.config.precision):
            logits = self.wrapped["head"](z.detach() if hard else z).float()
        normalizer = self.peers.total(utility_normalizer(y, self.task, positive_share=self.positive_share))
        weights = {"label_weights": self.label_weights}
        loss = utility_loss(logits, y, self.task, positive_share=self.positive_share, normalizer=normalizer, **weights)
        num_rows = self.peers.total(torch.tensor(float(len(y)), device=self.device))
        share = self.config.utility.teacher_weight
        if soft is not None:
            loss = (1 - share) * loss + share * distillation_loss(logits, soft, self.task, num_rows=num_rows, **weights)
        value = float(self.peers.total(loss.detach()))
        if not np.isfinite(value):
            raise FloatingPointError(f"the utility loss is {value} in round {round}: lower the learning rates")
        if hard:  # the head learns probabilities, the privatizer gives right answers
            shares = answer_shares(z, levels=self.config.privatizer.levels)
            loss = loss + wrong_answers(
                shares,
                y,
                self.task,
                soft=soft,
                soft_share=share,
                positive_share=self.positive_share,
                normalizer=normalizer,
                num_rows=num_rows,
                **weights,
            )
        (self.peers.count * loss).backward()
        pending.grad = z.grad
        return value, logits.detach()

    def step(self, grad_z: Tensor | None, *, move_head: bool = True) -> Metrics:
        """One step on the gradient of L_U plus `grad_z` (B, k), the gradient of the weighted privacy term for all peers' rows.

        Returns the norms of both gradients over the encoder's parameters if `game.gradient_norms` is set, else no metrics.
        """
        pending = self.pending.popleft()
        assert pending.grad is not None
        self.optimisers["privatizer"].zero_grad(set_to_none=True)
        leaves = [p for p in pending.copies.values() or self.net["privatizer"].parameters() if p.requires_grad]
        utility_grads = utility_gradient(pending, leaves) if self.config.game.gradient_norms else None
        if grad_z is not None:
            pending.grad = pending.grad + self.peers.count * grad_z[self.peers.local_slice(len(grad_z))]
        (pending.code * pending.grad).sum().backward()  # code.backward(grad) is the same, but imports sympy: 0.2 s
        norms = gradient_norms(utility_grads, leaves) if utility_grads is not None else {}
        copy_grads = {name: copy.grad for name, copy in pending.copies.items() if copy.grad is not None}
        for name, grad in zip(copy_grads, self.peers.average(list(copy_grads.values())), strict=True):
            self.net["privatizer"].get_parameter(name).grad = grad
        self._released = None
        self.optimisers["privatizer"].step()
        self.schedules["privatizer"].step()
        if move_head:
            self.step_head()
        if self.averaged is not None:
            self.averaged.update_parameters(self.net)
        return norms

    def step_head(self) -> None:
        """One step of the utility head on the gradient that `utility` has set."""
        self._released = None
        self.optimisers["head"].step()
        self.schedules["head"].step()

    @property
    def released(self) -> nn.ModuleDict:
        """The networks that are exported and evaluated: a copy of the present weights (or of the averaged weights, if any) with
        batch norm statistics computed for exactly these weights."""
        if self._released is None:
            self._released = self.with_recomputed_statistics(self.net if self.averaged is None else self.averaged.module)
        return self._released

    @torch.no_grad()
    def with_recomputed_statistics(self, net: nn.Module) -> nn.ModuleDict:
        """A copy of privatizer and head with the batch norm statistics of these weights on training pictures."""
        net = copy.deepcopy(net).eval()
        assert isinstance(net, nn.ModuleDict)
        if self.pictures is not None and norm_layers(net):
            refresh_statistics(net["privatizer"], self.pictures())
            parts = (inputs_of(x, self.noise(len(x), "statistics", i)) for i, x in enumerate(self.pictures()))
            refresh_statistics(net["head"], (net["privatizer"](*inputs) for inputs in parts))
        return net

    @torch.no_grad()
    def codes(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes (B, k) and logits (B, num_logits) of the released weights. noise: see `release`."""
        net = self.released
        z = net["privatizer"](*inputs_of(x, noise))
        return z, net["head"](z)

    @torch.no_grad()
    def current_codes(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes (B, k) as in a release of the current weights, with batch statistics. Changes no state."""
        encoder = self.net["privatizer"].train()
        norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 0.0
            with autocast(self.device, self.config.precision):
                return encoder(*inputs_of(x, noise))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    def noise(self, num_rows: int, *path: str | int) -> Tensor | None:
        """The noise of one use of `num_rows` codes (B, k), by name; None if the codes have none."""
        if not (noise := self.config.privatizer.noise):
            return None
        drawn = noise_of(self.config.seed, *path, shape=(num_rows, self.config.k), noise=noise)
        return torch.from_numpy(drawn).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """All state that the next step depends on. No codes may be pending."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`; pending codes are dropped."""
        self.pending.clear()
        self._released = None
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"net": self.net, **{f"optimiser/{n}": o for n, o in self.optimisers.items()}}
        parts |= {f"schedule/{n}": s for n, s in self.schedules.items()}
        if self.averaged is not None:
            parts["averaged"] = self.averaged
        return parts
