"""Reproduce an experiment of the paper.

    python jobs/reproduce.py gaussian --theory            # the best codes of the Gaussian mixture, for the original's weights
    python jobs/reproduce.py gaussian --theory --lambdas 1 10 100 --seed 3

With --theory a JSON object is printed for each weight: lambda, accuracy, mse (of the best linear attack, per dimension), for the
covariances of the test points.
"""

import json
import sys

from cpgan_ray import cli


def main() -> None:
    job = cli.parse_reproduce(sys.argv[1:], description=__doc__ or "")
    from cpgan_ray.reproduction import theory_lines

    for line in theory_lines(job.lambdas, seed=job.seed):
        print(json.dumps(line))


if __name__ == "__main__":
    cli.run(main)
