"""The same game on Ray: the central privatizer actor hosts it, each adversary is an actor, one placement group holds them all.

Only z, row numbers and grad_z travel in a round. Actors are not restarted by Ray: one that starts again from nothing would look
like privacy. From the cluster up: cluster, answers, places, players, driver; beside them tasks, for what needs nothing of its like.
"""
