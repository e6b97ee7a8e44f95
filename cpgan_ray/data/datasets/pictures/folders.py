"""Read pictures from a folder for each class: the class is the first folder of a path, or the second if the first is a split."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from cpgan_ray.data.datasets.celeba_rows import display_name
from cpgan_ray.data.datasets.pictures.layout import TABLES, Layout
from cpgan_ray.data.datasets.pictures.listing import Column, Files, Listing
from cpgan_ray.data.datasets.pictures.splits import SPELLINGS
from cpgan_ray.errors import InputError

CLASS = "class"
"""Name of the label."""


def read_folders(layout: Layout) -> Listing:
    """The pictures sorted by path, with the label `class`.

    If all folders are named after splits (`train`, `test`, ...), they are the splits, and the folders in them are the classes.

    Raises:
        InputError: a picture is in no class folder, or there is only one class.
    """
    names = sorted(layout.pictures)
    paths = [PurePosixPath(name).parts for name in names]
    by_split = all(len(parts) > 2 and parts[0].lower() in SPELLINGS for parts in paths)
    level = 1 if by_split else 0
    if loose := [name for name, parts in zip(names, paths, strict=True) if len(parts) < level + 2]:
        raise InputError(
            f"{layout.source}: {len(loose)} pictures are in no class folder, first {display_name(loose[0])}: put each into the "
            f"folder of its class, or name the table that lists them with --data.table{_hint(layout)}"
        )
    classes = sorted({parts[level] for parts in paths})
    if len(classes) < 2:
        raise InputError(
            f"{layout.source}: all pictures are in one class folder, {display_name(classes[0])}, nothing can be learnt: give the "
            f"folder above, or name a table with --data.table{_hint(layout)}"
        )
    number_of = {name: number for number, name in enumerate(classes)}
    codes = np.array([number_of[parts[level]] for parts in paths], np.int32)

    parts = np.array([SPELLINGS[parts[0].lower()] for parts in paths], np.int64) if by_split else None
    return replace(list_files(layout), columns={CLASS: Column(classes, codes)}, parts=parts)


def list_files(layout: Layout) -> Listing:
    """The pictures sorted by path, without labels and splits."""
    names = sorted(layout.pictures)

    @contextlib.contextmanager
    def open_files() -> Iterator[Files]:
        yield lambda rows: (layout.source / names[int(row)] for row in rows)

    return Listing(
        origin=str(layout.source),
        names=names,
        columns={},
        exists=np.ones(len(names), bool),
        open=open_files,
        row_name=lambda row: display_name(names[row]),
    )


def _hint(layout: Layout) -> str:
    """A table in the folder, as the end of a message."""
    tables = sorted(path.name for path in layout.source.iterdir() if path.suffix.lower() in TABLES and path.is_file())
    return f" {display_name(tables[0])}" if tables else ""
