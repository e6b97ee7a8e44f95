"""Measures speed and cost of the actors: rounds per second, overhead of a round, bytes of a message, memory of each process.

    python -m cpgan_ray.devtools.bench                   # prints a table, takes about four minutes
    python -m cpgan_ray.devtools.bench --json            # the last printed line is a JSON object
    python -m cpgan_ray.devtools.bench --checkpoints     # cost of a checkpoint in a game of CelebA's size, five minutes
    python -m cpgan_ray.devtools.bench --nodes 8         # rounds of 1 to 64 sleeping adversaries on 8 local nodes
    python -m cpgan_ray.devtools.bench --process-starts 5 # CPU time of a process until it can compute
    python -m cpgan_ray.devtools.bench --ray-starts 5    # start and end of a local Ray, with and without unneeded processes
    python -m cpgan_ray.devtools.bench --serve           # the service next to other servers, bytes and client, four minutes
    python -m cpgan_ray.devtools.bench --layers          # this package's layers compared with torch's layers, a few seconds
    python -m cpgan_ray.devtools.bench --tournament RUN  # CPU seconds and R2 of each attack on a finished run, ten minutes
    python -m cpgan_ray.devtools.bench --memory 200000   # peak memory with 200000 pictures (10 GB of disk, half an hour)

The speedup compares a game with K convolutional decoders on Ray with the same game in one process, with one torch thread or with
all cores, whichever is faster. The variants alternate in one run; a number is the median ratio of two variants over all turns.
"""
