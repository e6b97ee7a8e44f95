"""Work that needs nothing of its like, as Ray tasks: the attacks of a tournament, the cells of a comparison."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from cpgan_ray.common.credentials import export_env, import_env
from cpgan_ray.common.process import pick_device, set_up_process
from cpgan_ray.common.signals import requested
from cpgan_ray.config import RuntimeConfig
from cpgan_ray.distributed.cluster import connect, is_local
from cpgan_ray.distributed.resources import Bundle, CapacityWaiter, ensure_room
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.fitting import AttackSpec, EvaluationContext, FittedAttack, fit_attack


def attack_task(spec: AttackSpec, context: EvaluationContext, *, runtime: RuntimeConfig) -> FittedAttack:
    """One attack in a Ray worker of its own; what it fitted comes back on the CPU."""
    cpus, gpus = context.config.cpus, context.config.gpus
    set_up_process(threads=runtime.threads or max(1, int(cpus)), gpu_share=gpus)
    device = pick_device(runtime.device)
    made = fit_attack(spec, context, device=device)
    if device.type == "cpu":
        return made
    torch.save(made, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=False)  # our own bytes of a moment ago


def fit_on_ray(
    todo: Sequence[AttackSpec], context: EvaluationContext, *, runtime: RuntimeConfig, done: Callable[[FittedAttack], None]
) -> list[FittedAttack]:
    """All attacks as Ray tasks, each with its own resources, as many at once as the cluster has room for; in the order of `todo`.

    Raises: InputError with the numbers where the cluster has no room for one; what an attack raised, without Ray's wrapping.
    """
    connect(runtime)
    config = context.config
    size: Bundle = {"CPU": config.cpus, "GPU": config.gpus}
    waiter = CapacityWaiter([size], option="runtime.startup_timeout_s", patience_s=runtime.startup_timeout_s)
    while lacking := [kind for kind, wanted in size.items() if wanted > ray.cluster_resources().get(kind, 0.0)]:
        if runtime.startup_timeout_s == 0:
            there, flag = ray.cluster_resources().get(lacking[0], 0.0), f"--attacks.{lacking[0].lower()}s"
            raise InputError(f"an attack needs {size[lacking[0]]:g} {lacking[0]}s, the cluster has {there:g}: lower {flag}")
        waiter.report_shortage()
        time.sleep(1)
    shared = ray.put(context)
    task: Any = ray.remote(attack_task).options(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=2)  # pyright: ignore
    references = [task.remote(spec, shared, runtime=runtime) for spec in todo]
    return gather_in_order(references, done=lambda index, fitted: done(fitted))


def gather_in_order(references: Sequence[Any], *, done: Callable[[int, Any], None]) -> list[Any]:
    """The results of tasks, in the order of `references`. `done` is called with index and result of each task as it ends. The tasks
    that are left when it raises, or when one of them fails, are cancelled.

    Raises: what a task raised, without Ray's wrapping.
    """
    indices = {reference: i for i, reference in enumerate(references)}
    results: dict[int, Any] = {}
    waiting = list(references)
    try:
        while waiting:
            (ready, *_), waiting = ray.wait(waiting, num_returns=1)
            index = indices[ready]
            results[index] = ray.get(ready)
            done(index, results[index])
    except RayTaskError as e:
        raise e.cause from e
    finally:
        if not (requested() and is_local()):  # a local cluster ends with this process; Ray may crash on a task that ends meanwhile
            for reference in waiting:
                ray.cancel(reference, force=True)
    return [results[i] for i in range(len(references))]


def equipped(environment: Mapping[str, str], work: Callable[..., None], arguments: Sequence[Any]) -> None:
    """`work(*arguments)`, with what may be needed to reach the data."""
    import_env(environment)
    work(*arguments)


def in_tasks(
    work: Callable[..., None],
    todo: Sequence[Sequence[Any]],
    *,
    runtime: RuntimeConfig,
    cpus: float,
    gpus: float,
    done: Callable[[int], None],
) -> None:
    """`work(*arguments)` for each of `todo` as Ray tasks, as many at once as the cluster has room for. `done` hears the number of
    each that has ended; one whose process dies is done again.

    Raises: InputError with the numbers where the cluster has no room for one; what a task raised, without Ray's wrapping.
    """
    ensure_room([{"CPU": cpus, "GPU": gpus}], ray.cluster_resources(), runtime)
    task: Any = ray.remote(equipped).options(num_cpus=cpus, num_gpus=gpus, max_retries=2)  # pyright: ignore
    references = [task.remote(export_env(), work, arguments) for arguments in todo]
    gather_in_order(references, done=lambda index, _: done(index))
