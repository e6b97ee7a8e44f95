"""Tests that the status of a search's or a comparison's MLflow run says how the work ended."""

from functools import partial

import pytest

from cpgan_ray.config import Config, SearchJob, TrackingConfig
from cpgan_ray.config.folders.jobs import SEARCH, read_search
from cpgan_ray.pipelines.parent_run import job_folder, parent_run, recorded_run

pytestmark = pytest.mark.usefixtures("process_left_as_it_was")


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_parent_run_status_says_how_its_block_ended(error, status, mlflow_uri, tmp_path):
    requested = SearchJob(config=Config(output=tmp_path / "out", tracking=TrackingConfig(uri=mlflow_uri)))
    with job_folder(requested, "search", resume=False) as (folder, job):
        open_run = partial(recorded_run, job, folder, SEARCH, name="a search", params={"k": 4})

        def work() -> None:
            with parent_run(open_run) as (run, _):
                assert read_search(folder) == (job, run.run_id)
                assert run.client.get_run(run.run_id).info.status == "RUNNING"
                runs.append(run)
                if error is not None:
                    raise error

        runs = []
        if error is None:
            work()
        else:
            with pytest.raises(error):
                work()
    (run,) = runs
    assert run.client.get_run(run.run_id).info.status == status
    assert run.client.get_run(run.run_id).data.params == {"k": "4"}
