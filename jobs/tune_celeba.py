"""Search code size and privacy weight, or any settings: utility against the strongest fresh attack. Every trial is a whole game.

    python jobs/tune_celeba.py                                        # preset faces: 12 settings by Optuna's TPE
    python jobs/tune_celeba.py celeba --data-dir DIR --num-samples 24 --max-r2 0.1
    python jobs/tune_celeba.py --searcher grid --search-space k=32,64 privacy_weight=0.1,0.2,0.4
    python jobs/tune_celeba.py --search-space k privacy_weight=0.05..2 adversaries.rbf.memory_batches privatizer.family \\
        --num-seeds 3
    python jobs/tune_celeba.py --adversaries ridge rbf mlp=2          # which adversaries play, and how many of each
    python jobs/tune_celeba.py --resume FOLDER                        # continue an interrupted search
    ray job submit --working-dir . -- python jobs/tune_celeba.py celeba --data-dir DIR --output DIR

The search of another user is resumed only with --trust, because Ray Tune restores its state with pickle.

The last line printed is a JSON object: run_id, output, trials, front, hypervolume, r2_at, recommended (with the command that trains
it), seconds.
"""

import json
import sys

from cpgan_ray import cli


def main() -> None:
    job, resume = cli.parse_search(sys.argv[1:], description=__doc__ or "")
    from cpgan_ray.pipelines.tune.job import search

    result = search(job, resume=resume)
    print(result.text)
    print(json.dumps(result.summary))
    if not result.ok:
        print("failed: no trial has finished", file=sys.stderr)
        sys.exit(cli.FAILED)


if __name__ == "__main__":
    cli.run(main)
