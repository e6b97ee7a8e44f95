"""The job of `jobs/reproduce.py`: mechanisms on a data set, every cell a Ray task."""
