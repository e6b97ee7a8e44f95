"""What the actors gain, and what they cost: rounds per second, overhead of a round, bytes of a message, memory of each process.

    python -m cpgan_ray.bench                      # a table, in about four minutes
    python -m cpgan_ray.bench --json               # the last line printed is a JSON object
    python -m cpgan_ray.bench --checkpoints        # instead: what a checkpoint costs a game of CelebA's size, in about five minutes
    python -m cpgan_ray.bench --nodes 8            # instead: rounds of 1 to 64 sleeping adversaries on so many local nodes
    python -m cpgan_ray.bench --layers             # instead: layers of this project's own beside torch's plain ones, in seconds
    python -m cpgan_ray.bench --memory 200000      # instead: peak memory of a run on so many pictures (10 GB of disk, half an hour)

Speed is that of K convolutional decoders on Ray against the same game in one process, with one torch thread or with all cores,
whichever is faster. The sides take turns in one run; a number is the median over the turns of the ratio of two sides.
"""
