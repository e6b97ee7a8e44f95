"""RAN: an encoder against one neural decoder, with three steps for the task before each adversarial step.

S. Liu, A. Shrivastava, J. Du, L. Zhong, Better accuracy with quantified privacy: representations learned via reconstructive
adversarial network, arXiv 1901.08730, 2019. The order of the steps is the one that the reference implementation uses for its
comparison. Optimiser, learning rate schedule, weight decay, averaging, augmentation, class weights and teachers are those of the
game, as for all mechanisms.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from cpgan_ray.common.optimisers import Adam
from cpgan_ray.common.process import autocast, pick_device, torch_stream
from cpgan_ray.common.types import Batch
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, task_of
from cpgan_ray.data.batching import pictures, representative_rows, rounds_per_epoch, training_batch
from cpgan_ray.data.pca import DEFAULT_COMPONENTS, projection
from cpgan_ray.mechanisms.base import Released, encode_all, predict_logits, task_loss
from cpgan_ray.mechanisms.games import neural
from cpgan_ray.models import build_head, build_privatizer, build_reconstructor
from cpgan_ray.models.cost import count
from cpgan_ray.models.statistics import refresh_statistics
from cpgan_ray.training.defender import averaged_copy, scheduled_optimiser
from cpgan_ray.training.inputs import corrupt_inputs, fit_whitening, to_input

UTILITY_STEPS = 3
"""Steps of the classifier and of the decoder before each adversarial step."""


def ran(config: Config, alpha: float, dataset: Dataset) -> Released:
    """Train RAN. Each batch has three steps of encoder and classifier on L_U, each followed by a step of the decoder on L_R; then
    one step of encoder and classifier on alpha L_U - (1 - alpha) L_R. Backbone and code are the same as for CPGAN, the decoder is
    the neural adversary of the configuration."""
    device = pick_device(config.runtime.device)
    config = replace(config, privatizer=replace(config.privatizer, noise=0.0))
    (settings,) = neural(config).values()
    dimension = int(np.prod(dataset.image_shape))
    task = task_of(dataset, config.data.labels)
    basis = projection(dataset, components=DEFAULT_COMPONENTS, progress=False)
    mean = torch.from_numpy(np.array(basis.mean)).to(device)
    with torch_stream(config.seed, "mechanism", "ran", "weights"):
        encoder = build_privatizer(config.privatizer, k=config.k, image_shape=dataset.image_shape).to(device)
        head = build_head(config.utility, k=config.k, num_logits=task.num_logits, image_shape=dataset.image_shape).to(device)
        fit_whitening(encoder, dataset)
        decoder = build_reconstructor(settings, k=config.k, image_shape=dataset.image_shape, target=dimension).to(device)
    encoder_parameters, decoder_parameters = [*encoder.parameters(), *head.parameters()], [*decoder.parameters()]
    p, total_rounds = config.privatizer, config.epochs * rounds_per_epoch(len(dataset.train), config.batch_size)
    (task_optimiser, task_schedule), (adversarial_optimiser, adversarial_schedule) = (
        scheduled_optimiser(encoder_parameters, p, learning_rate=p.learning_rate, total_rounds=total_rounds) for _ in range(2)
    )
    net = nn.ModuleDict({"encoder": encoder, "head": head})
    averaged = averaged_copy(net, p)
    loss_of = task_loss(config, dataset, task, device=device)
    decoder_optimiser = Adam(decoder_parameters, lr=settings.learning_rate)

    def step(optimiser: torch.optim.Optimizer, loss: torch.Tensor, parameters: list[nn.Parameter]) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        optimiser.step()

    def error(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(decoder(z).float(), target)

    for part in (encoder, head, decoder):
        part.train()

    def task_error(z: torch.Tensor, batch: Batch) -> torch.Tensor:
        return loss_of(head(z).float(), batch)

    for round in range(total_rounds):
        batch = training_batch(round, dataset, config)
        x = to_input(pictures(dataset.train, batch), device)
        target = x.permute(0, 2, 3, 1).flatten(1) - mean
        x = corrupt_inputs(x, config, round=round, num_rows=len(x), local=slice(None))
        with torch_stream(config.seed, "mechanism", "ran", round), autocast(device, config.precision):
            z = encoder(x)
            for _ in range(UTILITY_STEPS):
                step(task_optimiser, task_error(z, batch), encoder_parameters)
                z = encoder(x)  # stays valid, because the decoder's step does not change the encoder
                step(decoder_optimiser, error(z.detach(), target), decoder_parameters)
            step(adversarial_optimiser, alpha * task_error(z, batch) - (1 - alpha) * error(z, target), encoder_parameters)
        task_schedule.step()
        adversarial_schedule.step()
        if averaged is not None:
            averaged.update_parameters(net)
    if averaged is not None:
        net.load_state_dict(averaged.module.state_dict())
    inputs = [to_input(dataset.train.take(rows), device) for rows in representative_rows(len(dataset.train), config.batch_size)]
    refresh_statistics(encoder, inputs)
    with torch.no_grad():
        refresh_statistics(head, [encoder(x) for x in inputs])
    codes = encode_all(lambda x, rng: encoder(x), dataset, config, name="ran")
    logits = {key: predict_logits(head, z, device) for key, z in codes.items()}
    return Released(codes, logits, encoder=encoder, cloud=count(head, (config.k,)))
