"""Train a privatizer against its adversaries, then run fresh attacks on it.

    python jobs/train_celeba.py                                       # embedded procedural faces, a few minutes on two cores
    python jobs/train_celeba.py celeba --data-dir DIR                 # CelebA in its official layout
    python jobs/train_celeba.py celeba --data-dir DIR --privacy-weight 0    # the undefended control
    python jobs/train_celeba.py --adversaries ridge rbf decoder=4     # which adversaries play, and how many of each
    python jobs/train_celeba.py pictures --data-dir DIR --check       # own pictures: only show what they hold
    python jobs/train_celeba.py pictures --data-dir DIR --data.table labels.csv    # own pictures with a table of labels
    python jobs/train_celeba.py celeba --data-dir DIR --seeds 3       # three trainings: means, intervals over seeds and people
    python jobs/train_celeba.py --resume FOLDER                       # continue an interrupted run from its last checkpoint
    python jobs/train_celeba.py CONFIG.json --seed 1                  # a new run with the settings of another run's config.json
    python jobs/train_celeba.py --privatizer.family nets.py:build     # a network of your own (docs/extending.md)
    ray job submit --working-dir . -- python jobs/train_celeba.py celeba --data-dir DIR --output DIR

From a folder that another user has written, --resume takes only what was trained. --trust also takes data, caches, cluster and
tracking store from it.

The last line printed is a JSON object: run_id, output, accuracy, majority_accuracy, balanced_accuracy, strongest (attack, variant,
r2, low, high), answers_floor_r2, label_floor_r2, warnings, seconds. With --check: output, store, pictures, splits, identities,
labels, sides, near_duplicates, batch_size, findings, contact_sheet, seconds. With --seeds: run_id, output, seeds, accuracy,
balanced_accuracy, strongest_r2, strongest_r2_face, excess_r2, bits (each value, low, high), degenerate, seconds.
"""

import json
import sys

from cpgan_ray import cli


def main() -> None:
    arguments = sys.argv[1:]
    only_check = cli.take_check(arguments)
    if (several := cli.parse_seeds(arguments, default="faces", description=__doc__ or "")) is not None:
        from cpgan_ray.pipelines.seeds.job import train_seeds

        text, summary = train_seeds(several[0], resume=several[1])
        print(text)
        print(json.dumps(summary))
        return
    config, resume = cli.parse_train(arguments, default="faces", description=__doc__ or "")
    if only_check:
        from cpgan_ray.pipelines.check import check

        text, summary = check(config)
        print(text)
        print(json.dumps(summary))
        return
    from cpgan_ray.pipelines.train import train

    print(json.dumps(train(config, resume=resume)))


if __name__ == "__main__":
    cli.run(main)
