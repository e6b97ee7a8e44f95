"""Command lines: flags to a configuration, and errors to one line and an exit status. Imports neither torch nor Ray."""

from cpgan_ray.cli.attack import find_target, parse_attack
from cpgan_ray.cli.exit_status import FAILED, run
from cpgan_ray.cli.export import parse_export
from cpgan_ray.cli.flags import read_flags, take_check
from cpgan_ray.cli.frontier import parse_frontier
from cpgan_ray.cli.reproduce import parse_reproduce
from cpgan_ray.cli.search import parse_search
from cpgan_ray.cli.seeds import parse_seeds
from cpgan_ray.cli.serve import parse_serve
from cpgan_ray.cli.train import parse, parse_train
from cpgan_ray.common.environment import complete_environment
from cpgan_ray.config import FrontierJob
from cpgan_ray.config.folders.jobs import REPRODUCTION, SEARCH, read_reproduction, read_search
from cpgan_ray.config.folders.runs import ADJUSTABLE, command_for, read_run, store_of
from cpgan_ray.config.folders.targets import Target

complete_environment()  # before any library reads a variable that may be missing

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
    "parse_export",
    "parse_frontier",
    "parse_reproduce",
    "parse_search",
    "parse_seeds",
    "parse_serve",
    "parse_train",
    "read_flags",
    "read_reproduction",
    "read_run",
    "read_search",
    "run",
    "store_of",
    "take_check",
]
