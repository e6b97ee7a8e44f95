"""Draw the fronts of tracked runs, utility against the R2 of the strongest fresh attack, only from the MLflow store.

    python jobs/frontier.py EXPERIMENT                          # all trainings of an MLflow experiment
    python jobs/frontier.py SEARCH_RUN_ID                       # the trials of a search, by its MLflow run
    python jobs/frontier.py cpgan noise                         # two experiments, a front each
    python jobs/frontier.py EXPERIMENT --max-r2 0.08            # recommends the most accurate one, by validation
    python jobs/frontier.py EXPERIMENT --min-accuracy 0.87      # ... the most private one above that accuracy
    python jobs/frontier.py EXPERIMENT --tracking-uri http://mlflow:5000 --output DIR

Writes `frontier.png`, `frontier.json` and `frontier.csv` into the output folder and prints a table of the settings. The last line
printed is a JSON object: output, experiments (each with trials, front, hypervolume, r2_at), recommended.
"""

import json
import sys

from cpgan_ray import cli


def main() -> None:
    job = cli.parse_frontier(sys.argv[1:], description=__doc__ or "")
    from cpgan_ray.pipelines.frontier import draw_fronts

    text, summary = draw_fronts(job)
    print(text)
    print(json.dumps(summary))


if __name__ == "__main__":
    cli.run(main)
