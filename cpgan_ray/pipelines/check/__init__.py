"""The job of `jobs/train_celeba.py PRESET --check`: read a data set, show what it holds and what would be trained, train
nothing."""

from cpgan_ray.pipelines.check.job import check

__all__ = ["check"]
