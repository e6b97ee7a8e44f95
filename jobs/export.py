"""Export a finished run as a bundle: the privatizer for clients, the utility head for the service, both as ONNX models.

    python jobs/export.py outputs/faces-20260101-120000 --output DIR   # a run's output folder
    python jobs/export.py RUN_ID --zip                                 # an MLflow run; also as one file
    python jobs/export.py RUN --weights int8                           # a quarter of the size of float32
    python jobs/export.py RUN --full                                   # measured again with the whole tournament
    python jobs/export.py RUN --register NAME --alias champion         # also as new versions in MLflow's registry
    python jobs/export.py models:/NAME@champion                        # the run of a registered version

Accuracy, R2 and bytes are measured again, on the codes of the exported privatizer. The export fails, and writes nothing, if they
are worse than the run's beyond its 95 % intervals. docs/wire-format.md describes the files.

The last line printed is a JSON object: output, zip, digest, weights, accuracy, strongest (attack, variant, r2, low, high), bytes,
changed_numbers, registered, passed, seconds.
"""

import json
import sys
from pathlib import Path

from cpgan_ray import cli


def fetch(run_id: str) -> Path:
    from cpgan_ray.tracking import fetch_run

    return fetch_run(run_id)


def resolve(name: str) -> str:
    from cpgan_ray.tracking import registered_run

    return registered_run(name)


def main() -> None:
    target, job = cli.parse_export(sys.argv[1:], description=__doc__ or "", fetch=fetch, resolve=resolve)
    from cpgan_ray.pipelines.export import export

    outcome = export(target, job)
    print(json.dumps(outcome.summary))
    if outcome.failures:
        print("failed: " + "; ".join(outcome.failures), file=sys.stderr)
        sys.exit(cli.FAILED)


if __name__ == "__main__":
    cli.run(main)
