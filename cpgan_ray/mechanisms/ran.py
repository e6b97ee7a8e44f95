"""RAN: an encoder against one neural decoder, three steps for the task to one against it.

S. Liu, A. Shrivastava, J. Du, L. Zhong, Better accuracy with quantified privacy: representations learned via reconstructive
adversarial network, arXiv 1901.08730, 2019; the schedule is that of the original's comparison.
"""

import numpy as np
import torch
from torch import nn

from cpgan_ray.common.process import pick_device, torch_stream
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, label_columns, label_frequencies
from cpgan_ray.data.batching import pictures, representative_rows, rounds_per_epoch, training_batch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.mechanisms.base import SPLITS, Released, predict_logits
from cpgan_ray.mechanisms.games import neural
from cpgan_ray.models import build_head, build_privatizer, build_reconstructor
from cpgan_ray.models.statistics import refresh_statistics
from cpgan_ray.training.defender import corrupt_inputs, fit_whitening, to_input
from cpgan_ray.training.losses import utility_loss

UTILITY_STEPS = 3
"""Steps for the task, and of the decoder, before each adversarial step."""


def ran(config: Config, alpha: float, dataset: Dataset) -> Released:
    """Per batch: three times a step of encoder and classifier on L_U and one of the decoder on L_R; then one of encoder and
    classifier on alpha L_U - (1 - alpha) L_R. Backbone and code are CPGAN's, the decoder is the configuration's
    neural adversary."""
    device = pick_device(config.runtime.device)
    (settings,) = neural(config).values()
    dimension = int(np.prod(dataset.image_shape))
    outputs = len(label_frequencies(dataset, config.data.labels))
    basis = projection(dataset, components=DEFAULT_COMPONENTS, progress=False)
    mean = torch.from_numpy(np.array(basis.mean)).to(device)
    with torch_stream(config.seed, "mechanism", "ran", "weights"):
        encoder = build_privatizer(config.privatizer, k=config.k, image_shape=dataset.image_shape).to(device)
        head = build_head(config.utility, k=config.k, num_labels=outputs, image_shape=dataset.image_shape).to(device)
        fit_whitening(encoder, dataset)
        decoder = build_reconstructor(settings, k=config.k, image_shape=dataset.image_shape, target=dimension).to(device)
    mine, theirs = [*encoder.parameters(), *head.parameters()], [*decoder.parameters()]
    for_task, against = (torch.optim.Adam(mine, lr=config.privatizer.learning_rate) for _ in range(2))
    decoding = torch.optim.Adam(theirs, lr=settings.learning_rate)
    labels = dataset.train.labels[:, label_columns(dataset, config.data.labels)]

    def step(optimiser: torch.optim.Optimizer, loss: torch.Tensor, moved: list[nn.Parameter]) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=moved)
        optimiser.step()

    def error(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(decoder(z), target)

    for net in (encoder, head, decoder):
        net.train()
    for round in range(config.epochs * rounds_per_epoch(len(dataset.train), config.batch_size)):
        chosen = training_batch(round, dataset, config)
        x = to_input(pictures(dataset.train, chosen), device)
        target = x.permute(0, 2, 3, 1).flatten(1) - mean
        x = corrupt_inputs(x, config, round=round, num_rows=len(x), local=slice(None))
        y = torch.from_numpy(labels[chosen.rows]).float().to(device)
        with torch_stream(config.seed, "mechanism", "ran", round):
            z = encoder(x)
            for _ in range(UTILITY_STEPS):
                step(for_task, utility_loss(head(z), y), mine)
                z = encoder(x)  # which the decoder's step leaves as it is
                step(decoding, error(z.detach(), target), theirs)
            step(against, alpha * utility_loss(head(z), y) - (1 - alpha) * error(z, target), mine)
    shown = [to_input(dataset.train.take(rows), device) for rows in representative_rows(len(dataset.train), config.batch_size)]
    refresh_statistics(encoder, shown)
    with torch.no_grad():
        refresh_statistics(head, [encoder(x) for x in shown])
    codes = {split: encoded(encoder, dataset, split, device) for split in SPLITS}
    logits = {split: predict_logits(head, codes[split], device) for split in ("val", "test")}
    if dataset.info.mirrored:
        codes |= {f"{split}_mirrored": encoded(encoder, dataset, split, device, mirrored=True) for split in ("train", "val")}
    return Released(codes, logits)


@torch.no_grad()
def encoded(encoder: nn.Module, dataset: Dataset, split: str, device: torch.device, *, mirrored: bool = False) -> np.ndarray:
    """Codes of a whole split, (N, k)."""
    encoder.eval()
    blocks = getattr(dataset, split).iter_batches(500)
    parts = [encoder(to_input(b[:, :, ::-1].copy() if mirrored else b, device)).cpu() for b in blocks]
    return torch.cat(parts).numpy()
