"""A reader for each data set, from its official layout to samples or to a draft of the store."""
