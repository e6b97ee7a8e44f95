"""Tests of the client's cost."""

import numpy as np
import pytest
import torch
from torch import nn

from cpgan_ray.evaluation.client import client_cost, code_bits


def test_client_cost_of_conv_net_equals_a_hand_count():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4 * 6, 5))
    threads = torch.get_num_threads()
    cost = client_cost(net, np.zeros((10, 5), np.float32), image_shape=(8, 12, 3))
    assert cost.multiply_adds == 8 * 12 * 8 * 3 * 9 + 8 * 4 * 6 * 5
    assert cost.parameters == 8 * 3 * 9 + 8 + 8 * 4 * 6 * 5 + 5
    assert cost.ms is not None and cost.ms > 0
    assert torch.get_num_threads() == threads


def test_client_cost_of_unknown_network_has_only_bytes():
    cost = client_cost(None, np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32), image_shape=(8, 8, 1))
    assert (cost.multiply_adds, cost.parameters, cost.ms, cost.bytes) == (None, None, None, 12)


@pytest.mark.parametrize(("levels", "bits"), [(1, 0), (2, 1), (3, 2), (256, 8), (257, 32)])
def test_code_bits_are_those_of_the_values_that_occur(levels, bits):
    assert code_bits((np.arange(4096) % levels)[:, None].astype(np.float32)) == bits


def test_code_bits_of_few_rows_are_floats():
    assert code_bits(np.arange(40, dtype=np.float32)[:, None]) == 32, "40 values in 40 rows are no finite code"
