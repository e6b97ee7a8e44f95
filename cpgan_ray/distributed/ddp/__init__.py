"""A privatizer of several workers: a worker group of Ray Train that shares every batch, against the same adversaries' actors.

Each worker plays the same game in step with the others. It encodes its rows of the round's batch; the codes are gathered, so that
the adversaries see the whole batch, as they do with one worker, and the first worker's seats are their actors: their answers go to
all. Networks are wrapped by DistributedDataParallel; batch statistics and the draws of dropout are those of the whole batch. The
outcome is that of one worker, to float tolerance.

Ray Train restarts a group that has lost a worker, from the last checkpoint that it has committed. The adversaries outlive the
group, and have played on; so a checkpoint holds them too, and all go back to it.
"""
