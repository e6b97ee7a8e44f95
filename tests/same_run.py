"""Checks whether two runs are bit-identical except for times: `python tests/same_run.py RUN OTHER [--renamed OLD=NEW ...]`.

Compares the metrics of each round, the exported weights, and the outputs of the exported programs for random inputs. Use it for a
change that must not alter results: run `python jobs/train_celeba.py smoke --output DIR` before and after the change. The
differences are printed, and the exit status is then 1.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch

TIMES = ("time/", "system/", "client/ms")


def metrics(folder: Path, renamed: Mapping[str, str]) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl` without times, with renamed metrics."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    renamed_rows = [
        {renamed.get(name, name): v for name, v in row.items() if not (name.startswith(TIMES) or name.endswith("/seconds"))}
        for row in rows
    ]
    return [row for row in renamed_rows if row.keys() - {"round"}]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """All parameters, buffers and constants of an exported program by their order, because their names may change."""
    program = torch.export.load(path)
    values = [*program.state_dict.values(), *(c for c in program.constants.values() if isinstance(c, torch.Tensor))]
    return {str(i): value for i, value in enumerate(values)}


def outputs(path: Path, *, raw: bool) -> torch.Tensor:
    """The outputs of an exported program for random inputs with the shape of its example."""
    program = torch.export.load(path)
    assert program.example_inputs is not None
    shape = (16, *program.example_inputs[0][0].shape[1:])
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8) if raw else torch.randn(shape, generator=draw)
    with torch.no_grad():
        return program.module(check_guards=False)(x)


def differences(run: Path, other: Path, renamed: Mapping[str, str]) -> list[str]:
    """The differences between two runs, one line each."""
    lines = []
    rows, other_rows = metrics(run, renamed), metrics(other, {})
    if len(rows) != len(other_rows):
        lines.append(f"{len(rows)} and {len(other_rows)} lines of metrics")
    for number, (a, b) in enumerate(zip(rows, other_rows, strict=False)):
        names = sorted(name for name in {**a, **b} if a.get(name) != b.get(name))
        lines += [f"line {number}: {name}: {a.get(name)} and {b.get(name)}" for name in names]
    for name in ("privatizer.pt2", "utility_head.pt2"):
        a, b = weights(run / name), weights(other / name)
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            lines.append(f"{name}: different weights")
        raw = name == "privatizer.pt2"
        if not torch.equal(outputs(run / name, raw=raw), outputs(other / name, raw=raw)):
            lines.append(f"{name}: different outputs")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument(
        "--renamed", nargs="*", default=[], metavar="OLD=NEW", help="metrics of RUN that have different names in OTHER"
    )
    args = parser.parse_args()
    lines = differences(args.run, args.other, dict(pair.split("=") for pair in args.renamed))
    print("\n".join(lines[:50]) or "identical")
    raise SystemExit(1 if lines else 0)


if __name__ == "__main__":
    main()
