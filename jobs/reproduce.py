"""Compare mechanisms on one data set under the same attacks, as the paper does, and print the theory of the Gaussian mixture.

    python jobs/reproduce.py mnist --data-dir DIR                       # all mechanisms, at up to 3 settings, 5 seeds
    python jobs/reproduce.py mnist --data-dir DIR --calibrate           # choose every mechanism's settings by the same rule
    python jobs/reproduce.py mnist --data-dir DIR --grids GRIDS_FILE    # compare at these settings
    python jobs/reproduce.py har --data-dir DIR --mechanisms cpgan ran pca --num-settings 2 --num-seeds 1
    python jobs/reproduce.py digits --num-seeds 2                       # real and embedded: needs no folder
    python jobs/reproduce.py genki4k --data-dir DIR --full              # the whole tournament instead of the quick comparison
    python jobs/reproduce.py digits --adversaries ridge rbf mlp=2       # which adversaries the game plays against
    python jobs/reproduce.py mnist --data-dir DIR --estimate            # how many cells that is, and the CPU time by mechanism
    python jobs/reproduce.py --resume FOLDER                            # continue an interrupted comparison
    python jobs/reproduce.py --resume FOLDER --mechanisms cpgan pca        # continue, with these mechanisms in all
    python jobs/reproduce.py gaussian --theory                          # the mixture's best codes, for the published weights

From a folder that another user has written, --resume takes only what is compared. --trust also takes data, caches, cluster and
tracking store from it.

Writes into the output folder `results.md`, `results.csv`, `results.json`, `grids.json`, `frontier.png`, `.json`, `.csv`,
`attackers.png` and a folder for each training; with --published FOLDER (result files of the reference implementation) also
`published.png`; for gaussian also `theory.png`. The last line printed is a JSON object: run_id, output, cells, failed, hypervolume
(of cpgan), gap, seconds. With --calibrate only `grids.json` is written, and the object has run_id, output, grids, sha256, settings,
not_reached, seconds. With --estimate: cells, attacks, cpu_hours, by_mechanism, estimate_cpu_s. With --theory one JSON object is
printed per weight: lambda, accuracy, mse (of the best linear attack, per dimension).
"""

import json
import sys

from cpgan_ray import cli


def main() -> None:
    job, resume = cli.parse_reproduce(sys.argv[1:], description=__doc__ or "")
    if job.theory:
        from cpgan_ray.theory import theory_lines

        for line in theory_lines(job.lambdas, seed=job.config.data.mixture_seed):
            print(json.dumps(line))
        return
    if job.estimate:
        from cpgan_ray.pipelines.reproduce.estimate import estimate

        text, summary = estimate(job, resume=resume)
        print(text)
        print(json.dumps(summary))
        return
    from cpgan_ray.pipelines.reproduce.job import reproduce

    text, summary = reproduce(job, resume=resume)
    print(text)
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
