"""Read a data set whole, and print what it holds and what would be trained on it."""

import time
from typing import Any

from prettytable import PrettyTable, TableStyle

from cpgan_ray.common.atomic_io import write_bytes
from cpgan_ray.common.text import printable_values
from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, load
from cpgan_ray.data.near_duplicates import near_duplicates
from cpgan_ray.errors import printable
from cpgan_ray.pipelines.check.contact_sheet import contact_sheet
from cpgan_ray.pipelines.check.summary import findings, identity_summary, label_rows, side_counts, splits_of
from cpgan_ray.pipelines.fit_to_data import fitted_batch, num_pictures
from cpgan_ray.pipelines.output_folder import output_folder
from cpgan_ray.training.game import active_adversaries

SHEET = "contact_sheet.png"
MAX_CLASSES_SHOWN = 6


def check(config: Config) -> tuple[str, dict[str, Any]]:
    """Prepare the store of the data set and describe it. Writes `contact_sheet.png` to the output folder. Returns the text and the
    summary that the job prints.

    Raises:
        InputError: the data set cannot be read.
    """
    started = time.perf_counter()
    with output_folder(config.output, f"{config.preset}-check") as output:
        dataset = load(config)
        pictures = dataset.train.dtype == "uint8"
        duplicates = near_duplicates(dataset) if pictures else {}
        labels = label_rows(dataset, config.data.labels)
        values: dict[str, Any] = {
            "output": str(output),
            "store": str(dataset.folder),
            "pictures": num_pictures(dataset),
            "splits": {name: len(split) for name, split in splits_of(dataset).items()},
            "identities": identity_summary(dataset),
            "labels": labels,
            "sides": side_counts(dataset),
            "near_duplicates": duplicates,
            "batch_size": fitted_batch(config, dataset),
            "findings": findings(dataset, labels, duplicates),
        }
        sheet = contact_sheet(dataset, config.data.labels)
        if sheet is not None:
            write_bytes(output / SHEET, sheet)
            values["contact_sheet"] = str(output / SHEET)
    values = printable_values(values) | {"seconds": round(time.perf_counter() - started, 1)}
    return "\n\n".join([label_table(labels), *map("\n".join, (facts(values, dataset), plan(config, values)))]) + "\n", values


def label_table(labels: list[dict[str, Any]]) -> str:
    """The labels as a table."""
    table = PrettyTable(["label", "in the task", "kind", "classes", "missing"], align="l")
    table.set_style(TableStyle.MARKDOWN)
    for label in labels:
        known = sum(label["classes"].values())
        total = known + label["missing"]
        shares = [f"{name} {100 * count / max(1, known):.3g} %" for name, count in label["classes"].items()]
        shown = ", ".join(shares[:MAX_CLASSES_SHOWN]) + (", ..." if len(shares) > MAX_CLASSES_SHOWN else "")
        missing = f"{label['missing']} ({100 * label['missing'] / total:.3g} %)" if label["missing"] else "0"
        table.add_row(
            [printable(text) for text in (label["name"], "yes" if label["task"] else "no", label["kind"], shown, missing)]
        )
    return table.get_string()


def facts(values: dict[str, Any], dataset: Dataset) -> list[str]:
    """Splits, identities and sizes, a line each."""
    people = values["identities"]
    lines = [f"pictures    {values['pictures']}: " + ", ".join(f"{name} {count}" for name, count in values["splits"].items())]
    if not people["known"]:
        lines.append("identities  unknown")
    elif not people["repeated"]:
        lines.append(f"identities  {people['count']}, with one picture each")
    else:
        lines.append(
            f"identities  {people['count']}, with {people['smallest']} to {people['largest']} pictures (median "
            f"{people['median']:g}); {people['repeated']} have several"
        )
    height, width, channels = dataset.image_shape
    stored = f"stored as {height} x {width} x {channels}"
    sides = ", ".join(f"{side} pixels: {count}" for side, count in values["sides"].items())
    lines.append(f"sizes       {f'shorter side {sides}; ' if sides else ''}{stored}")
    duplicates = sum(values["near_duplicates"].values())
    lines.append(f"copies      {duplicates} pictures of val, test and final have a near-duplicate in another split")
    lines.append(f"store       {values['store']}")
    if "contact_sheet" in values:
        lines.append(f"sheet       {values['contact_sheet']}")
    return lines


def plan(config: Config, values: dict[str, Any]) -> list[str]:
    """What would be trained, and what to look at first."""
    batch, rows = values["batch_size"], values["splits"]["train"]
    task = [label["name"] for label in values["labels"] if label["task"]]
    names = ", ".join(task[:MAX_CLASSES_SHOWN]) + (", ..." if len(task) > MAX_CLASSES_SHOWN else "")
    lines = [
        f"would train preset {config.preset}: a code of {config.k} numbers for {len(task)} labels ({names}), privacy weight "
        f"{config.privacy_weight:g}",
        f"{config.epochs} epochs of {rows // batch} rounds of {batch} pictures, against "
        f"{', '.join(active_adversaries(config)) or 'none'}; "
        f"then the attacks {', '.join(config.attacks.names)}",
    ]
    return lines + [f"look at: {finding}" for finding in values["findings"]]
