"""The release gates of jobs/attack.py: limits for what a report may show. The upper end of a 95 % interval counts, because few
people may show a small number by chance."""

from collections.abc import Mapping
from typing import Any

from cpgan_ray.config import AttackJob
from cpgan_ray.config.jobs import attribute_limits
from cpgan_ray.data import Dataset
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.identity.judges import has_pairs
from cpgan_ray.evaluation.identity.result import MEAN, PICTURES
from cpgan_ray.evaluation.report.report import degeneracy_reasons


def ensure_measurable(job: AttackJob, dataset: Dataset) -> None:
    """Check before the attacks that they will measure what the gates are for.

    Raises: InputError that names the gate.
    """
    if job.fail_above_linkage is not None:
        gate = f"fail_above_linkage is {job.fail_above_linkage:g}"
        if not job.attacks.identity:
            raise InputError(f"{gate}, but attacks.identity is off: leave out --attacks.no-identity")
        if dataset.info.anonymous or not all(has_pairs(part.identity) for part in (dataset.train, dataset.test)):
            raise InputError(f"{gate}, but the data do not say who is on which pictures: leave it out, or add identities")
    for name, limit in attribute_limits(job.fail_above_attribute).items():
        gate = f"fail_above_attribute is {name}={limit:g}"
        if not job.attacks.attributes:
            raise InputError(f"{gate}, but attacks.attributes is off: leave out --attacks.no-attributes")
        if name not in dataset.label_names:
            raise InputError(f"{gate}, but the data have no attribute {name!r}: choose from {', '.join(dataset.label_names)}")


def gate_failures(report: Mapping[str, Any], job: AttackJob) -> tuple[str, ...]:
    """The reasons why a report fails the gates of a job; none if it has no gate."""
    if job.fail_above is None and job.fail_above_linkage is None and not job.fail_above_attribute:
        return ()
    failed = [warning["message"] for warning in report["warnings"] if warning["kind"] == "failed_attacks"]
    measured = r2_failures(report, job) + linkage_failures(report, job) + attribute_failures(report, job)
    return (*degeneracy_reasons(report), *failed, *measured)


def r2_failures(report: Mapping[str, Any], job: AttackJob) -> list[str]:
    strongest = report["privacy"]["strongest"]
    if job.fail_above is None or strongest["high"] <= job.fail_above:
        return []
    return [f"strongest R2 {strongest['r2']:.4f}, {ends_at(strongest['high'])}, above {job.fail_above}"]


def linkage_failures(report: Mapping[str, Any], job: AttackJob) -> list[str]:
    limit = job.fail_above_linkage
    if limit is None:
        return []
    links = {name: link for name, link in report["identity_linkage"].items() if name not in (PICTURES, MEAN)}
    if not links:
        return [f"identity linkage was not measured, so it is not known to be below {limit}"]
    name, worst = max(links.items(), key=lambda item: item[1]["high"])
    if worst["high"] <= limit:
        return []
    return [f"linkage AUC {worst['auc']:.4f} of {name}, {ends_at(worst['high'])}, above {limit}"]


def attribute_failures(report: Mapping[str, Any], job: AttackJob) -> list[str]:
    inferred = {attribute["name"]: attribute for attribute in report["attributes"]}
    failures = []
    for name, limit in attribute_limits(job.fail_above_attribute).items():
        if (attribute := inferred.get(name)) is None or attribute["high"] is None:
            failures.append(f"attribute {name} was not inferred, because one of the sets has only one value of it")
        elif not attribute["high"] <= limit:
            value = attribute["balanced_accuracy"]
            failures.append(f"balanced accuracy {value:.4f} of attribute {name}, {ends_at(attribute['high'])}, above {limit}")
    return failures


def ends_at(high: float) -> str:
    return f"whose 95 % interval ends at {high:.4f}"
