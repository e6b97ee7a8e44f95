"""Ray Tune over whole games: two objectives, utility up and the strongest fresh attack's R2 down.

A trial's process hosts the privatizer; its adversaries, and later its attacks, run in the trial's own placement group. It leaves a
run's folder in `<output>/trials/`, named after its setting and seed, and a run in MLflow below the search's. `trial.json` in that
folder is written last: a trial that has one is never played again, whoever asks for it.

What is chosen by what: proposals and the recommendation go by the validation split (`val_accuracy`, `val_r2`), early stopping by
quick fresh attacks on validation people; never by a training adversary. What is reported is the test split's.
"""
