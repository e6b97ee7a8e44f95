"""One module or package per job: all steps from a configuration to the output folder."""
