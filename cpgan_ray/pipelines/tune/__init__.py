"""Search with Ray Tune over whole games. Two objectives: high utility, and low R2 of the strongest fresh attack.

A trial's process hosts the privatizer; its adversaries, and later its attacks, run in the trial's own placement group. Each trial
writes a run folder to `<output>/trials/`, named after its setting and seed, and logs a run to MLflow, as a child of the search's
run. `trial.json` in that folder is written last: a trial that has this file is never run again.

Proposals and the recommendation use only the validation split (`val_accuracy` or `val_balanced_accuracy`, `val_r2`). Early stopping
uses quick fresh attacks on validation people, never a training adversary. Reported numbers are measured on the test split, and
the bounds of the recommendation are checked there with whole intervals.
"""
