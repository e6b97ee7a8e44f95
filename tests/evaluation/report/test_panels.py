"""Tests of the panel of signals."""

import numpy as np

from cpgan_ray.evaluation.report.panels import signal_grid


def test_signal_grid_draws_all_signals_on_one_scale():
    high, low = np.full((2, 32), 3.0, np.float32), np.full((2, 32), -1.0, np.float32)
    rows = {"high": high, "low": low, "one": np.ones((1, 32), np.float32)}
    panel = np.asarray(signal_grid(rows, image_shape=(32, 1, 1)), dtype=np.int64)
    height, tile = len(panel), len(panel) // 3
    coloured = panel.max(axis=2) - panel.min(axis=2) > 60
    heights = [np.flatnonzero(coloured[i * tile : (i + 1) * tile].any(axis=1)).mean() / tile for i in range(3)]
    assert np.allclose(heights, [0.05, 0.95, 0.5], atol=0.04), heights
    left = [coloured[i * tile : (i + 1) * tile].any(axis=0).sum() for i in range(3)]
    assert abs(left[0] - 2 * left[2]) <= 4, "a row with one signal has one tile"
    assert height == 330
