"""Tests that the batch norm statistics of released networks match the released weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from cpgan_ray.data.batching import STATISTICS_ROWS, representative_rows
from cpgan_ray.models.statistics import refresh_statistics
from cpgan_ray.training.game import play_in_process
from cpgan_ray.training.inputs import to_input


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Dropout(0.5), nn.Linear(80, 2), nn.BatchNorm1d(2, affine=False))


def test_refresh_statistics_equals_torchs_update_bn_without_dropout():
    batches = [torch.randn(16, 3, 8, 8) * (i + 1) for i in range(3)]
    ours, reference = network(), network()
    reference[6] = nn.Identity()
    refresh_statistics(ours, batches)
    update_bn(batches, reference)
    for norm in (1, 4, 8):
        assert torch.allclose(ours[norm].running_mean, reference[norm].running_mean, atol=1e-6)
        assert torch.allclose(ours[norm].running_var, reference[norm].running_var, rtol=1e-5)


def test_refresh_statistics_draws_nothing_and_leaves_no_hook():
    net, x = network(), torch.randn(16, 3, 8, 8)
    state = torch.get_rng_state()
    refresh_statistics(net, [x])
    assert torch.equal(torch.get_rng_state(), state)
    repeated = copy.deepcopy(net)
    assert torch.equal(net(x), repeated(x)) and not any(part._forward_hooks for part in net.modules())


def test_refresh_statistics_without_batches_raises():
    with pytest.raises(ValueError, match="no batch"):
        refresh_statistics(network(), [])


@pytest.mark.parametrize(("rows", "batch"), [(10, 4), (100, 100), (100, 400), (5000, 640), (5000, 3000), (2048, 100)])
def test_representative_rows_spread_each_batch_over_the_split(rows, batch):
    batches = representative_rows(rows, batch)
    together = np.concatenate(batches)
    assert len(np.unique(together)) == len(together) <= max(batch, STATISTICS_ROWS)
    assert together.min() == 0 and together.max() == rows - 1
    for numbers in batches:
        assert len(numbers) == min(batch, rows) and abs(numbers.mean() - (rows - 1) / 2) < rows / batch + 1


@pytest.mark.parametrize("decay", [0.0, 0.9], ids=["last_weights", "averaged"])
def test_released_codes_after_few_rounds_equal_those_of_training_mode(tiny, decay):
    """After 4 rounds the running statistics are 34 % (1 - 0.9^4) of the way; released codes must equal the codes in training
    mode."""
    config = tiny("ridge", changes={"epochs": 1, "privatizer.ema_decay": decay})
    game = play_in_process(config, threads=1)
    assert len(game.play(100)) == game.total_rounds == 4
    worker = game.privatizer
    x = to_input(worker.dataset.train.take(representative_rows(len(worker.dataset.train), config.batch_size)[0]), worker.device)
    released = worker.defender.released
    training = copy.deepcopy(released["privatizer"]).train()
    with torch.no_grad():
        z, expected = released["privatizer"](x), training(x)
    assert (z - expected).std() < 0.15 * expected.std()
    assert 0.8 < z.std() / expected.std() < 1.25
