"""The same game on Ray: the privatizer's actor runs the game, each adversary is an actor, one placement group contains them all.

Only z, row numbers and grad_z are sent in a round. Ray does not restart actors: an untrained adversary would look like privacy. The
modules build on each other: cluster, rpc, resources, adversary_pool, host, driver. The module tasks runs independent work.
"""

from cpgan_ray.common.garbage import postpone_collection

postpone_collection()  # an actor's process imports this package first
