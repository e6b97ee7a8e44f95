"""What `jobs/train_celeba.py --seeds` takes in addition to the configuration of a run."""

from dataclasses import field
from typing import Annotated

from pydantic import Field

from cpgan_ray.config.constraints import config_class
from cpgan_ray.config.schema import Config

MIN_TRAININGS = 2
"""From so many trainings on there is an interval over seeds."""


@config_class()
class SeedsJob:
    """The settings of trainings of one configuration under several seeds."""

    num_seeds: Annotated[int, Field(ge=MIN_TRAININGS)] = MIN_TRAININGS
    """Number of trainings, with the seeds from `config.seed` on."""
    config: Config = field(default_factory=Config)
    """The run that is repeated; its `output` is the folder of all of them."""
