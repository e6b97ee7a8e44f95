"""From a command line to a configuration, and from an error to one line and an exit status. Imports neither torch nor Ray."""

from cpgan_ray.cli.attack import Target, find_target, parse_attack
from cpgan_ray.cli.ending import FAILED, run
from cpgan_ray.cli.flags import read_flags
from cpgan_ray.cli.frontier import FrontierJob, parse_frontier
from cpgan_ray.cli.reproduce import REPRODUCTION, parse_reproduce, read_reproduction
from cpgan_ray.cli.search import SEARCH, parse_search, read_search
from cpgan_ray.cli.train import ADJUSTABLE, command_for, parse, parse_train, read_run, store_of
from cpgan_ray.common.environment import complete_environment

complete_environment()  # before any library looks for what may be missing

__all__ = [
    "ADJUSTABLE",
    "FAILED",
    "REPRODUCTION",
    "SEARCH",
    "FrontierJob",
    "Target",
    "command_for",
    "find_target",
    "parse",
    "parse_attack",
    "parse_frontier",
    "parse_reproduce",
    "parse_search",
    "parse_train",
    "read_flags",
    "read_reproduction",
    "read_run",
    "read_search",
    "run",
    "store_of",
]
