"""Fresh attacks on the frozen codes of a finished run, and their scores.

Nothing here scores a training adversary, or a row that an attack was fitted on.
"""
