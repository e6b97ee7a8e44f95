"""What a search, a comparison and trainings under several seeds share: their output folder, their MLflow run, and the record from
which they are resumed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cpgan_ray.common.signals import Stop, defer_signals
from cpgan_ray.config import ReproduceJob, SearchJob, SeedsJob, to_json
from cpgan_ray.config.folders.records import write_record
from cpgan_ray.pipelines.output_folder import output_folder, with_output
from cpgan_ray.tracking import SearchRun

J = TypeVar("J", SearchJob, ReproduceJob, SeedsJob)


@contextmanager
def job_folder(job: J, kind: str, *, resume: bool) -> Iterator[tuple[Path, J]]:
    """The output folder of a job, locked until the block ends, and the job with this folder. kind: for the name of a new folder.

    Raises: InputError, see `output_folder`.
    """
    with output_folder(job.config.output, f"{kind}-{job.config.preset}", resume=resume) as folder:
        yield folder, job if resume else with_output(job, folder)


def recorded_run(
    job: SearchJob | ReproduceJob | SeedsJob, folder: Path, record: str, *, values: Mapping[str, Any] | None = None, **options: Any
) -> SearchRun:
    """Open the MLflow run of a job, and write the job's record with its id. From then on the job can be resumed.

    record: name of the file; values: what it contains in addition; options: further arguments of `SearchRun`.
    """
    run = SearchRun(job.config, folder, **options)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / record, {"run_id": run.run_id, **(values or {}), "job": to_json(job)})
    return run


@contextmanager
def parent_run(open_run: Callable[[], SearchRun]) -> Iterator[tuple[SearchRun, Stop]]:
    """The MLflow run of a job, open until the block ends. Its final status says how the block ended: FINISHED, KILLED by a signal,
    or FAILED. Signals are deferred, except where the block uses `Stop.allowed`."""
    with defer_signals() as stop:  # otherwise a signal just before or after the `try` could leave the MLflow run RUNNING
        run = open_run()
        status = "FAILED"
        try:
            yield run, stop
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            run.close(stop.run_status(status))
