"""Attack a finished run, or anybody's encoder, with the tournament of fresh attacks.

    python jobs/attack.py outputs/faces-20260101-120000                 # a run's output folder
    python jobs/attack.py RUN_ID                                        # an MLflow run
    python jobs/attack.py BUNDLE                                        # the privatizer of a bundle (jobs/export.py)
    python jobs/attack.py encoder.pt2 --data-dir DIR --dataset celeba   # any torch.export program or ONNX file
    python jobs/attack.py RUN --fail-above 0.2                          # a release gate on the end of the interval
    python jobs/attack.py RUN --final                                   # score on the final split, for a result that is published
    python jobs/attack.py RUN --trust                                   # use all settings of a folder that another user wrote
    python jobs/attack.py RUN --variant leaked --against OTHER_RUN      # a paired comparison with another run
    python jobs/attack.py e.onnx --encoder.outputs embedding            # only some of an encoder's outputs, not all together
    python jobs/attack.py RUN --attacks.names ridge own.py:attack       # an attack of your own (docs/extending.md)
    python jobs/attack.py noisy.pt2 --encoder.stochastic                # a stochastic encoder: it may draw random numbers
    python jobs/attack.py e.onnx --encoder.scale 0 255 --encoder.channel-order bgr         # how its author prepares pictures
    python jobs/attack.py e.onnx --encoder.scale 0 1 --encoder.mean 0.485 0.456 0.406 --encoder.std 0.229 0.224 0.225
    python jobs/attack.py e.onnx --encoder.size 48 192                  # an encoder of any size, with the size in which it is used
    python jobs/attack.py --encoder.command 'python my_encoder.py'      # a black box: a program that answers pictures with codes
    python jobs/attack.py http://127.0.0.1:8000/encode                  # a black box at a URL

An encoder takes pictures (B, 3, H, W) or (B, H, W, 3) and returns codes of any shape. Flags say what its file does not: the order
of the colours, and what black and white are. What is assumed stands in the report. It must give a picture the same code in every
batch. Other people's files run in a process of their own, with limits on memory and time. docs/auditing.md explains all of it. A
degenerate code (for example a constant one, or one whose predictions are no better than the majority guess) fails every gate,
whatever its R2.

The last line printed is a JSON object: run_id, output, strongest (attack, variant, r2, low, high), answers_floor_r2,
label_floor_r2, warnings, split, passed, seconds.
"""

import json
import sys
from pathlib import Path

from cpgan_ray import cli


def fetch(run_id: str) -> Path:
    from cpgan_ray.tracking import fetch_run

    return fetch_run(run_id)


def main() -> None:
    target, job = cli.parse_attack(sys.argv[1:], description=__doc__ or "", fetch=fetch)
    from cpgan_ray.pipelines.attack import attack

    gate = attack(target, job)
    print(json.dumps(gate.summary))
    if gate.failures:
        print("failed: " + "; ".join(gate.failures), file=sys.stderr)
        sys.exit(cli.FAILED)


if __name__ == "__main__":
    cli.run(main)
