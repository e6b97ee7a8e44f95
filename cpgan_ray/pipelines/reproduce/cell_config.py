"""The configuration of a cell."""

import dataclasses

from cpgan_ray.analysis.cells import Cell
from cpgan_ray.config import Config


def cell_config(cell: Cell, config: Config) -> Config:
    """The configuration of a cell: with its seed, and with or without rounding."""
    return dataclasses.replace(config if cell.rounded else config.without_rounding(), seed=cell.seed)
