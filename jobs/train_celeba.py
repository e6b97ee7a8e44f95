"""Train a privatizer against its adversaries, then run fresh attacks on it.

    python jobs/train_celeba.py                                       # embedded procedural faces, a few minutes on two cores
    python jobs/train_celeba.py celeba --data-dir DIR                 # CelebA in its official layout
    python jobs/train_celeba.py celeba --data-dir DIR --privacy-weight 0    # the undefended control
    python jobs/train_celeba.py --resume FOLDER                       # continue an interrupted run from its last checkpoint
    python jobs/train_celeba.py CONFIG.json --seed 1                  # a new run with the settings of another run's config.json
    python jobs/train_celeba.py --privatizer.family nets.py:build     # a network of your own (docs/extending.md)
    ray job submit --working-dir . -- python jobs/train_celeba.py celeba --data-dir DIR --output DIR

From a folder that another user has written, --resume takes only what was trained. --trust also takes data, caches, cluster and
tracking store from it.

The last line printed is a JSON object: run_id, output, accuracy, majority_accuracy, balanced_accuracy, strongest (attack, variant,
r2, low, high), label_floor_r2, warnings, seconds.
"""

import json
import sys

from cpgan_ray import cli


def main() -> None:
    config, resume = cli.parse_train(sys.argv[1:], default="faces", description=__doc__ or "")
    from cpgan_ray.pipelines.train import train

    print(json.dumps(train(config, resume=resume)))


if __name__ == "__main__":
    cli.run(main)
