"""The job of `jobs/reproduce.py`: a comparison of mechanisms on a data set, with a Ray task for each cell."""
