"""Tools of the developers: no part of a run."""
