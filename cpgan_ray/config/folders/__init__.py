"""The files in an output folder from which a run, a search or a comparison is resumed or attacked.

Such a file records what was trained and also where: tracking store, cluster, data. If another user has written it, these locations
would send this user's credentials and writes to an address of that user's choice. They are therefore used only if a run of this
user has written the file (see common/ownership.py), or with `--trust`.

`records` has what all these files share, `runs` the file of a run, `jobs` those of a search and of a comparison, `targets` what an
attack takes from the folder of a run.
"""
