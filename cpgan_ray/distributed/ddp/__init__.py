"""A privatizer with several workers: a worker group of Ray Train that shares every batch, against the same adversary actors.

All workers play the same game in lockstep. Each encodes its rows of the round's batch. The codes are gathered, so that the
adversaries see the whole batch, as with one worker. The first worker has the handles of the adversary actors and broadcasts their
feedback. Networks are wrapped by DistributedDataParallel; batch statistics and dropout masks are those of the whole batch. The
outcome equals the outcome with one worker, within float tolerance.

If a worker is lost, Ray Train restarts the group from the last committed checkpoint. The adversaries outlive the group and have
already played further rounds; therefore a checkpoint includes them, and all players return to it.
"""
