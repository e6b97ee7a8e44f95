"""One module or package per job: all steps from a configuration to the output folder."""

from cpgan_ray.common.garbage import postpone_collection

postpone_collection()  # a job's process, and that of a trial, imports this package first
