"""What the actors gain, and what they cost: rounds per second, overhead of a round, bytes of a message, memory of each process.

    python -m cpgan_ray.devtools.bench                   # a table, in about four minutes
    python -m cpgan_ray.devtools.bench --json            # the last line printed is a JSON object
    python -m cpgan_ray.devtools.bench --checkpoints     # cost of a checkpoint in a game of the size of CelebA, five minutes
    python -m cpgan_ray.devtools.bench --nodes 8         # rounds of 1 to 64 sleeping adversaries on so many local nodes
    python -m cpgan_ray.devtools.bench --ray-starts 5      # start and end of a local Ray, with and without unneeded processes
    python -m cpgan_ray.devtools.bench --layers          # layers of this project against torch's plain ones, seconds
    python -m cpgan_ray.devtools.bench --memory 200000   # peak memory with so many pictures (10 GB of disk, half an hour)

Speed is that of K convolutional decoders on Ray against the same game in one process, with one torch thread or with all cores,
whichever is faster. The sides take turns in one run; a number is the median over the turns of the ratio of two sides.
"""
