"""Fault test: players, drivers and nodes are killed at random moments, and each outcome is compared with the unbroken game.

    python -m cpgan_ray.devtools.chaos                                        # 50 kills of players, 10 of drivers, 5 nodes
    python -m cpgan_ray.devtools.chaos --kills 5 --drivers 1 --nodes 1 --json # the last line printed is a JSON object

The game is a small one, with an adversary of each kind, on procedural faces. Its weights must be those of the same game,
unbroken in one process, bit for bit; a checkpoint must be readable after every kill of a driver; no MLflow run may be left RUNNING.
"""
