"""The job of jobs/export.py: a bundle of a finished run.

`job` is the job; `models` converts the programs to ONNX; `codes` encodes the data set with the result and compares it with the
program; `measured` compares its numbers with the run's; `description` has the parts of the manifest.
"""

from cpgan_ray.pipelines.export.job import ExportOutcome, export

__all__ = ["ExportOutcome", "export"]
