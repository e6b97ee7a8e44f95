"""CPU time that a process takes until it can compute: an adversary's, a job's, and that of a trial of a search.

Each is measured as it is and with Python's usual search for garbage during the imports (common/garbage.py).
"""

import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from cpgan_ray.devtools.bench.settings import Settings

MODULES = {"adversary": "distributed.host", "job": "pipelines.train", "trial": "pipelines.tune.trial"}
SIDES = {"usual": "garbage.postpone_collection = lambda: None", "postponed": ""}
CODE = """
from cpgan_ray.common import garbage
{side}
import cpgan_ray.{module}
from cpgan_ray.common.process import set_up_process
set_up_process(threads=1)
import torch
from cpgan_ray.common.optimisers import AdamW
weight = torch.nn.Parameter(torch.zeros(1))
weight.grad = torch.ones(1)
AdamW([weight]).step()
"""


def measure_process_start(s: Settings, folder: Path) -> dict[str, Any]:
    """Medians over the turns, in CPU seconds, and the median ratio of the two sides. The sides take turns."""
    result: dict[str, Any] = {}
    for process, module in MODULES.items():
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(s.process_starts):
            for side, code in SIDES.items():
                seconds[side].append(cpu_seconds([sys.executable, "-c", CODE.format(side=code, module=module)]))
        result |= {f"{process}_{side}_cpu_s": statistics.median(values) for side, values in seconds.items()}
        result[f"{process}_ratio"] = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    return result


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
