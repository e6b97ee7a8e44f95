"""Whether two runs are the same, bit for bit, but for times: `python tests/same_run.py RUN OTHER [--renamed OLD=NEW ...]`.

Compares each round's metrics, the exported weights, and what the exported programs answer to drawn inputs. This is the check for a
change that must not alter results: run `python jobs/train_celeba.py smoke --output DIR` before and after it. Exit status 1 names
what differs.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch

TIMES = ("time/", "system/")


def metrics(folder: Path, renamed: Mapping[str, str]) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl` without times, under their new names."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {renamed.get(name, name): v for name, v in row.items() if not (name.startswith(TIMES) or name.endswith("/seconds"))}
        for row in rows
    ]
    return [row for row in kept if row.keys() - {"round"}]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """All parameters, buffers and constants of an exported program, by their order: their names may change."""
    program = torch.export.load(path)
    values = [*program.state_dict.values(), *(c for c in program.constants.values() if isinstance(c, torch.Tensor))]
    return {str(i): value for i, value in enumerate(values)}


def answers(path: Path, *, raw: bool) -> torch.Tensor:
    """What an exported program answers to drawn inputs of the shape of its example."""
    program = torch.export.load(path)
    assert program.example_inputs is not None
    shape = (16, *program.example_inputs[0][0].shape[1:])
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8) if raw else torch.randn(shape, generator=draw)
    with torch.no_grad():
        return program.module(check_guards=False)(x)


def differences(one: Path, other: Path, renamed: Mapping[str, str]) -> list[str]:
    """What differs, a line each."""
    found = []
    mine, theirs = metrics(one, renamed), metrics(other, {})
    if len(mine) != len(theirs):
        found.append(f"{len(mine)} and {len(theirs)} lines of metrics")
    for number, (a, b) in enumerate(zip(mine, theirs, strict=False)):
        wrong = sorted(name for name in {**a, **b} if a.get(name) != b.get(name))
        found += [f"line {number}: {name}: {a.get(name)} and {b.get(name)}" for name in wrong]
    for name in ("privatizer.pt2", "utility_head.pt2"):
        a, b = weights(one / name), weights(other / name)
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            found.append(f"{name}: other weights")
        raw = name == "privatizer.pt2"
        if not torch.equal(answers(one / name, raw=raw), answers(other / name, raw=raw)):
            found.append(f"{name}: other answers")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--renamed", nargs="*", default=[], metavar="OLD=NEW", help="metrics of RUN that have other names in OTHER")
    given = parser.parse_args()
    found = differences(given.run, given.other, dict(pair.split("=") for pair in given.renamed))
    print("\n".join(found[:50]) or "the same")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
