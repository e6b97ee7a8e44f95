"""One module or package per job: the whole way from a configuration to the folder that it leaves."""
