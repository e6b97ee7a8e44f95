"""Fault test: kills players, drivers and nodes at random moments, and compares each result with an undisturbed game.

    python -m cpgan_ray.devtools.chaos                                        # 50 kills of players, 10 of drivers, 5 nodes
    python -m cpgan_ray.devtools.chaos --kills 5 --drivers 1 --nodes 1 --json # the last printed line is a JSON object
    python -m cpgan_ray.devtools.chaos --serve                                # 20 kills of replicas, 5 new bundles, 16 clients

The game is small, with an adversary of each kind, on procedural faces. Its weights must be bit-identical to the undisturbed game in
one process; a checkpoint must be readable after every kill of a driver; no MLflow run may keep the status RUNNING.

With --serve every answer is compared with the one that the models of the client's own bundle give in this process. No answer may be
wrong, and no call of a client may fail; requests that a client sends again are counted.
"""
