"""Draw faces into a folder in the official CelebA layout."""

import multiprocessing
import os
import shutil
import uuid
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cpgan_ray.data.datasets.faces.drawing import draw_face
from cpgan_ray.data.datasets.faces.people import attributes, draw_identity, draw_shot
from cpgan_ray.errors import InputError


def write_faces(
    folder: Path,
    *,
    num_identities: int,
    pictures_per_identity: int,
    seed: int = 0,
    processes: int | None = None,
    size: tuple[int, int] = (89, 109),
) -> None:
    """Draw a data set into a new folder, in CelebA's official layout.

    The bytes depend on the arguments but not on the number of processes (by default one per core, at most 8). The folder appears
    only when it is complete; if another process has completed the same folder in the meantime, its pictures stay. Identities are
    numbered from 1: the first 80 % are the training partition, followed by 10 % for validation and 10 % for test. With more than
    one process the calling script is imported again in each process, so it needs the usual `if __name__ == "__main__"`.

    Raises:
        InputError: a number or the size is too small, or the folder already exists.
    """
    for name, value, minimum in (("num_identities", num_identities, 3), ("pictures_per_identity", pictures_per_identity, 1)):
        if value < minimum:
            raise InputError(f"{name} is {value!r}; it must be at least {minimum}")
    if min(size) < 16:
        raise InputError(f"size is {size!r}; it must be at least 16 x 16 pixels")
    if folder.exists():
        raise InputError(f"{folder} already exists: delete it, or give another folder for the faces")
    processes = min(processes or min(8, os.cpu_count() or 1), num_identities)
    unfinished = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}"
    (unfinished / "img_align_celeba").mkdir(parents=True)
    draw = partial(_write_person, folder=unfinished / "img_align_celeba", pictures=pictures_per_identity, seed=seed, size=size)
    try:
        with ExitStack() as stack:
            results = map(draw, range(num_identities))
            if processes > 1:
                spawn = multiprocessing.get_context("spawn")
                pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=spawn))
                results = pool.map(draw, range(num_identities), chunksize=max(1, min(16, num_identities // (4 * processes))))
            people = list(tqdm(results, total=num_identities, desc="drawing faces", unit="person", disable=None))
        _write_tables(unfinished, people)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_person(person: int, *, folder: Path, pictures: int, seed: int, size: tuple[int, int]) -> list[dict[str, bool]]:
    """Draw all pictures of one person; returns their attributes."""
    identity = draw_identity(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(person,))))
    rows = []
    for picture in range(pictures):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(person, picture)))
        shot = draw_shot(identity, rng=rng)
        image = draw_face(identity, shot, size=size, rng=rng)
        image.save(folder / _file_name(person * pictures + picture), quality=92)
        rows.append(attributes(identity, shot))
    return rows


def _file_name(row: int) -> str:
    return f"{row + 1:06d}.jpg"


def _write_tables(folder: Path, people: list[list[dict[str, bool]]]) -> None:
    held_out = max(1, round(0.1 * len(people)))
    names = list(people[0][0])
    values, identities, partitions = [], [], []
    for person, pictures in enumerate(people):
        remaining = len(people) - person
        partition = 2 if remaining <= held_out else 1 if remaining <= 2 * held_out else 0
        for row in pictures:
            name = _file_name(len(values))
            values.append(" ".join([name, *(f"{1 if row[a] else -1:2d}" for a in names)]))
            identities.append(f"{name} {person + 1}")
            partitions.append(f"{name} {partition}")
    tables = {
        "list_attr_celeba.txt": [str(len(values)), " ".join(names), *values],
        "identity_CelebA.txt": identities,
        "list_eval_partition.txt": partitions,
    }
    for file, lines in tables.items():
        (folder / file).write_text("\n".join(lines) + "\n")
