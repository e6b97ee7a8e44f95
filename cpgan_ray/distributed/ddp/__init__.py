"""A privatizer of several workers: a worker group of Ray Train that shares every batch, against the same adversaries' actors.

Each worker plays the same game in step with the others. It encodes its rows of the round's batch; the codes are gathered, so that
the adversaries see the whole batch, as with one worker. The first worker holds the handles of the adversary actors and broadcasts
their feedback. Networks are wrapped by DistributedDataParallel; batch statistics and dropout masks are those of the whole batch.
The outcome equals that of one worker, to float tolerance.

Ray Train restarts a group that has lost a worker, from the last checkpoint that it has committed. The adversaries outlive the
group, and have played on; so a checkpoint holds them too, and all go back to it.
"""
